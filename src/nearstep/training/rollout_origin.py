"""What written rollouts were sampled with, and whether a run may train from them or add to them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearstep.common.errors import ConfigError, DataError, TrainingError, shorten
from nearstep.config.ppo import PPOConfig

NAME = "rollouts.json"
FORMAT = 1
SAMPLING = (
    "seed", "num_generations", "response_length", "temperature", "top_p", "top_k", "stop_token", "stop_token_id",
    "max_length", "do_sample", "max_prompt_length", "shuffle_dataset", "shuffle_buffer",
    "sampler", "pool_borders", "pool_weights", "max_staleness",
)  # fmt: skip
AS_BEFORE = {
    "sampler": "auto",
    "gate_fill": None,
    "max_length": None,
    "do_sample": True,
    "max_staleness": 0,
}  # of folders from before these settings: what was sampled then
REFILLING = ("gate_fill", "gate", "gate_low", "gate_high", "gate_share", "refill_rounds")  # only with a refill


@dataclass(frozen=True)
class RolloutOrigin:
    """All that decides which prompts an update samples and how. Replaying it with anything else makes no sense."""

    processes: int
    batch: int  # episodes of an update
    data: str  # hash of the prompts
    top_tokens: int
    settings: dict[str, Any]
    format: int = FORMAT
    tokenizer: str | None = None  # fingerprint of what its ids mean; None where nobody asked, or in an older folder

    @staticmethod
    def of(
        config: PPOConfig, *, processes: int, batch: int, data: str, top_tokens: int, tokenizer: str | None = None
    ) -> "RolloutOrigin":
        """The origin of what a run samples."""
        refills = config.gate_fill == "refill"
        settings = {name: vars(config)[name] for name in SAMPLING}
        settings |= {name: vars(config)[name] if refills else None for name in REFILLING}
        return RolloutOrigin(processes, batch, data, top_tokens, json.loads(json.dumps(settings)), tokenizer=tokenizer)

    def write(self, folder: Path) -> None:
        """Say in the folder where its rollouts come from. Raises TrainingError where it cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"dump_rollouts: {folder} cannot be written: {error}. Give another folder") from error

    def differences(self, now: "RolloutOrigin") -> Iterator[str]:
        """What another run does otherwise, by setting, from the value of these rollouts to its own."""
        if self.processes != now.processes:
            yield f"number of processes: {self.processes} → {now.processes}"
        if self.batch != now.batch:
            yield f"batch_size: {self.batch} → {now.batch}"
        before, there = AS_BEFORE | self.settings, AS_BEFORE | now.settings
        refill = (before.get("gate_fill"), there.get("gate_fill"))
        if refill[0] != refill[1]:
            yield _why_refilled_otherwise(before if refill[0] else there, written=refill[0] is not None)
        for name, value in before.items():
            if value != there.get(name) and not (name in REFILLING and refill[0] != refill[1]):
                yield f"{name}: {shorten(value)} → {shorten(there.get(name))}"
        if self.data != now.data:
            yield "the prompts or their columns: other rows, or the same in another order"
        if now.top_tokens > self.top_tokens:
            yield f"most probable tokens that trust_region compares: {self.top_tokens} are written → {now.top_tokens}"


def _why_refilled_otherwise(refilled: Mapping[str, Any], *, written: bool) -> str:
    """One sentence where one of two runs samples new prompts in the place of groups that its gate drops."""
    gate = ", ".join(f"{name} = {shorten(refilled.get(name))}" for name in REFILLING if refilled.get(name) is not None)
    if written:
        return (
            f"these rollouts were refilled ({gate}): which prompts came in further rounds depends on that gate, and "
            "this run does not refill"
        )
    return f"this run refills ({gate}), and these rollouts have no further rounds to take from"


def check_replay(folder: Path, now: RolloutOrigin, *, rank: int, after: int, updates: int) -> None:
    """Raise ConfigError or DataError where a run cannot train from the folder's rollouts from after `after` on."""
    written = read_origin(folder, "replay_rollouts")
    if written is None:
        raise DataError(
            f"replay_rollouts: {folder} has no {NAME}: it is no folder that dump_rollouts has written. Give one"
        )
    other = [*written.differences(now)]
    if other:
        raise ConfigError(
            f"replay_rollouts: the rollouts in {folder} were sampled otherwise than this run would:\n"
            + "\n".join(f"  {each}" for each in other)
            + "\nGive this run the same, or sample anew with dump_rollouts"
        )
    there = updates_of(folder, rank)
    lacking = [update for update in range(after + 1, updates + 1) if update not in there]
    if lacking:
        first, last = lacking[0], lacking[-1]
        raise DataError(
            f"replay_rollouts: {folder} has the rollouts of {len(there)} updates, and this run needs those of updates "
            f"{after + 1} to {updates}: {f'{first} is' if first == last else f'{first} to {last} are'} not there. Give "
            f"--total_episodes {(first - 1) * now.batch}, or write more with dump_rollouts"
        )


def check_dump(folder: Path, now: RolloutOrigin, *, goes_on: bool) -> None:
    """Raise ConfigError where the folder holds rollouts of another run; whoever goes on adds to its own."""
    written = read_origin(folder, "dump_rollouts")
    is_used = written is not None or any(folder.glob("update-*.safetensors"))
    if is_used and not (goes_on and written is not None and not [*written.differences(now)]):
        raise ConfigError(
            f"dump_rollouts: {folder} holds rollouts of another run. Give another folder, or remove them"
            + (f"; to train from them give replay_rollouts = {folder}" if written is not None else "")
        )


def read_origin(folder: Path, setting: str) -> RolloutOrigin | None:
    """What a folder says; None where it says nothing. Raises DataError for what cannot be read."""
    path = folder / NAME
    try:
        return RolloutOrigin(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{setting}: {path} cannot be read: {error}. Give another folder") from error


def updates_of(folder: Path, rank: int) -> set[int]:
    """The updates of which a process finds both files."""
    files = {path.name for path in folder.glob(f"update-*.rank-{rank}.*")}
    tensors = {name for name in files if name.endswith(".safetensors")}
    return {int(name[7:13]) for name in tensors if name.removesuffix("safetensors") + "json" in files}
