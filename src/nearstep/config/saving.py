"""Which settings say what is saved of a run, and what it goes on from."""

from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Settings, option


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
