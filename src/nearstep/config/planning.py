"""The settings of `nearstep plan`: those of a run, and of the machine that it would run on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.config.ppo import SECTIONS, PPOConfig
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections

GPUS = ("h100", "h200", "a100", "a100_40gb", "b200", "l40s", "l4", "rtx4090", "mi300x")
MOST_DEVICES = 1024


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings):
    """On what a run would be, and how long its rows would be."""

    gpus: int | None = option(
        None, f"devices of the run, at most {MOST_DEVICES}; those of this machine if not given", at_least=1
    )
    gpu: str | None = option(None, f"which GPU, by the rates of its data sheet: {', '.join(GPUS)}")
    machine: str | None = option(
        None, "file with the rates of a machine, as nearstep doctor --measure FILE writes it", is_place=True
    )
    gpus_per_node: int = option(8, "devices of one machine, which speak with each other faster", at_least=1)
    prompt_tokens: int | None = option(
        None, "tokens of a prompt that are reckoned with; max_prompt_length if not given, else 512", at_least=1
    )
    plans: int = option(6, "layouts that are shown", at_least=1)
    json: bool = option(False, "print one JSON object instead of tables")


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class PlanConfig(PPOConfig, PlanSettings):  # fields of the last base come first
    """The settings of `nearstep ppo`, any of which may be given, and those of the plan."""

    def problems(self) -> Iterator[Problem]:
        """Settings of a run that clash, and of the machine."""
        yield from PPOConfig.problems(self)
        if self.gpu is not None and self.gpu not in GPUS:
            yield Problem(f"gpu = {self.gpu}: known are {', '.join(GPUS)}; for another give --machine FILE", ("gpu",))
        if self.gpu is not None and self.machine is not None:
            yield Problem("gpu and machine both say what it runs on: leave one out", ("gpu", "machine"))
        if self.machine is not None and not Path(self.machine).is_file():
            yield Problem(
                f"machine = {self.machine}: no such file; nearstep doctor --measure FILE writes one", ("machine",)
            )
        if self.gpu is not None and self.gpus is None:
            yield Problem("gpu without gpus: say how many, --gpus 8", ("gpus",))
        if (self.gpus or 1) > MOST_DEVICES:
            yield Problem(f"gpus = {self.gpus}: at most {MOST_DEVICES} are reckoned with", ("gpus",))


PLAN_SECTIONS = (*sections(("Plan", PlanSettings)), *SECTIONS)
