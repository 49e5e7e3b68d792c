"""What scripts give to TRL's trainer up to 0.11, and what becomes of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from nearstep.classic.models import ValueHeadModel
from nearstep.common.errors import ConfigError, RewardError
from nearstep.models.trl_heads import TrlHead, stored_trl_head

# Arguments of TRL's trainer that are not here: what to do instead.
LEFT_OUT = {
    "optimizer": "leave it out; learning_rate and max_grad_norm say what Adam does here",
    "lr_scheduler": "leave it out; the learning rate is constant here, and nearstep ppo has courses",
    "num_shared_layers": "leave it out; a reference is whole here, or the policy with its adapters off",
    "training_data_collator": "leave it out; rows are not padded",
}


def scores_are_given(completions: Sequence[str], **columns: object) -> list[float]:
    """Stands where a run of its own has rewards; here `step` is given scores."""
    raise RewardError("this trainer asks no reward: scores are given to step(queries, responses, scores)")


def refuse(**asked: object) -> None:
    """Raise ConfigError for the first argument that asks for something which is not here."""
    for name, value in asked.items():
        if value is not None:
            raise ConfigError(f"{name}: {LEFT_OUT[name]}")


def stored_head(model: object, name: str | None) -> TrlHead | None:
    """The value head that was saved with the policy, if one was."""
    if isinstance(model, ValueHeadModel):
        return model.head
    place = name if model is None else model
    return stored_trl_head(place) if isinstance(place, str | Path) else None


def processes() -> int:
    """Processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))
