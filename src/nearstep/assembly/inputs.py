"""What the user passes in Python beside the settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.rewards.build import RewardEntry


@dataclass(frozen=True)
class RunInputs:
    """What the user passed as objects (or as folders and hub names). What is None is made from the settings."""

    tokenizer: PreTrainedTokenizerBase | None = None
    model: nn.Module | str | None = None
    ref_model: nn.Module | str | None = None
    value_model: nn.Module | str | None = None
    reward_model: nn.Module | str | None = None
    reward_tokenizer: PreTrainedTokenizerBase | None = None
    reward_funcs: Sequence[RewardEntry] = ()
    train_dataset: object = None
    eval_dataset: object = None
    peft_config: Any = None
    callbacks: Sequence[object] = ()
    trust_region: object = None  # the axes: objects of their protocols, or classes to be made without arguments
    advantage: object = None
    kl_controller: object = None
    critic_schedule: object = None
    loss_aggregation: object = None
    engine: object = None
