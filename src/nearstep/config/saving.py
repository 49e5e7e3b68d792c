"""Which settings say what is saved of a run, and what it goes on from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Problem, Settings, option, without_effect

MAX_SHARD_SIZE = "5GB"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, kw_only=True)
class SavingSettings(Settings):
    """What is saved against faults, what is kept, and what a run goes on from."""

    resume: str | None = option(
        None, "auto: go on from the newest whole checkpoint in output_dir, if there is one; or a folder checkpoint-N"
    )
    fork_from: str | None = option(
        None, "folder checkpoint-N of another run from which this one begins, with other settings (nearstep fork)"
    )
    save_minutes: float | None = option(
        30.0, "minutes between two checkpoints against faults, of which the last two stay; 'none' for none", above=0
    )
    keep_steps: int | None = option(None, "updates between two checkpoints that are never removed", at_least=1)
    keep_best: bool = option(False, "keep the checkpoint with the best metric_for_best_model")
    on_save_error: Literal["raise", "continue"] = option(
        "raise", "a checkpoint that cannot be written: end the run, or count it and try again at the next one"
    )
    sharded_checkpoints: bool | None = option(
        None,
        "every process writes its own part of the weights and moments, none gathers them; if not given: where networks "
        "lie in pieces (dp_shard, tp_size)",
    )
    max_shard_size: str = option(
        MAX_SHARD_SIZE, "largest file of a saved model, such as 500MB; a folder in pieces is written one file at a time"
    )

    def problems_of_saving(self, divided_by: str | None) -> Iterator[Problem]:
        """Settings that clash; `divided_by` is the setting that deals networks out."""
        if shard_bytes(self.max_shard_size) is None:
            yield Problem(
                f"max_shard_size = {self.max_shard_size}: give a number and a unit, such as 500MB, 5GB or 2GiB",
                ("max_shard_size",),
            )
        if self.sharded_checkpoints and divided_by in ("zero_stage", "deepspeed"):
            yield Problem(
                f"sharded_checkpoints with {divided_by}: DeepSpeed deals weights out in a form of its own, and its "
                "checkpoints are of whole tensors. Leave it out, or use dp_shard",
                ("sharded_checkpoints", divided_by),
            )

    def remarks_of_saving(self, divided_by: str | None) -> Iterator[str]:
        """Settings without effect."""
        nothing_in_pieces = divided_by is None and bool(self.sharded_checkpoints)
        yield from without_effect(
            self, ("where every process holds whole networks (dp_shard, tp_size)", nothing_in_pieces,
                   ("sharded_checkpoints",)),
        )  # fmt: skip


def shard_bytes(text: str) -> int | None:
    """A size such as 5GB in bytes; None for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]I?B)", text.strip().upper())
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2]])
    return size or None
