"""How a critic's folder remembers what its outputs mean: `value_head` in its config.json, absent for a linear head.

Plain transformers passes the entry over and opens the folder with as many labels as there are outputs.
"""

import dataclasses
import json
from typing import Any, TypeAlias

from transformers import PreTrainedConfig

from nearstep.algorithm.value_heads import LinearHead, ValueHead
from nearstep.common.errors import ModelError

SETTING = "value_head"
StoredHead: TypeAlias = dict[str, Any]


def is_linear(head: ValueHead) -> bool:
    """Whether the critic's outputs are its values, as those of a reward model are its scores."""
    return isinstance(head, LinearHead)


def head_in_words(head: ValueHead) -> StoredHead | None:
    """What is stored of a head: its class and its fields, as plain values; None for a linear one."""
    if is_linear(head):
        return None
    fields: StoredHead = (
        dataclasses.asdict(head) if dataclasses.is_dataclass(head) and not isinstance(head, type) else {}
    )
    plain: StoredHead = json.loads(json.dumps({"class": type(head).__name__, **fields}, default=str))
    return plain


def remember_head(config: PreTrainedConfig, head: ValueHead) -> None:
    """Write a head into the configuration of the critic; of a linear one nothing."""
    stored = head_in_words(head)
    if stored is not None:
        config.update({SETTING: stored})


def stored_head(config: PreTrainedConfig) -> StoredHead | None:
    """What a configuration says of its head; None for a linear one, and for models that are no critics."""
    found: StoredHead | None = config.to_dict().get(SETTING)
    return found


def require_head(config: PreTrainedConfig | None, head: ValueHead, what: str) -> None:
    """Raise ModelError where a model's outputs mean something else to it than to this run; None: they are values."""
    stored = None if config is None else stored_head(config)
    if stored == head_in_words(head):
        return
    if is_linear(head):
        raise ModelError(
            f"{what} is a critic whose outputs are no values by themselves: it was saved with {shown(stored)}. Give "
            "the run the same value_head and its settings, or another model."
        )
    was = f"with {shown(stored)}" if stored else "without a value_head, so its output is the value"
    raise ModelError(
        f"{what} was saved {was}, "
        f"and this run reads its outputs with {shown(head_in_words(head))}. Give the run the head that it was saved "
        "with, or leave value_model out: the critic then starts from the reward model or the policy, with a new head."
    )


def shown(stored: StoredHead | None) -> str:
    """A head as a message shows it: BoundedHead(high=1.0, low=0.0)."""
    if stored is None:
        return "a linear head"
    fields = ", ".join(f"{name}={value}" for name, value in sorted(stored.items()) if name != "class")
    return f"{stored['class']}({fields})"
