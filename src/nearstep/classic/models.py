"""Policies with a value head, by TRL's names up to 0.11: the head itself is made by the trainer, on the same trunk."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearstep.common.errors import ModelError
from nearstep.common.given import given_adapters, given_model
from nearstep.common.random_streams import stream
from nearstep.common.trust import DEFAULT_TRUST
from nearstep.models.adapters import add_adapters, as_peft_model, is_adapted
from nearstep.models.load import load_policy


@dataclass(frozen=True)
class ValueHeadModel:
    """A policy on whose trunk a value head will stand, zero at first. `pretrained_model` is the policy."""

    pretrained_model: nn.Module

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | nn.Module,
        *,
        peft_config: Any = None,
        torch_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> "ValueHeadModel":
        """A policy from a folder, a hub name or an object, with new adapters if `peft_config` asks for them.

        A value head that TRL saved in the folder is not read. Raises ModelError as loading does.
        """
        model = given_model(pretrained_model_name_or_path, "model")
        if isinstance(model, str):
            model = load_policy(model, role="model", dtype=torch_dtype, trust=DEFAULT_TRUST)
        if model is None:
            raise ModelError("from_pretrained: give a folder, a hub name or a model")
        adapters = given_adapters(peft_config)
        return cls(model if adapters is None else add_adapters(as_peft_model(model), adapters, seed=seed))

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.pretrained_model.config

    def generate(self, *inputs: Any, **settings: Any) -> Any:
        """transformers' own generation, on the policy."""
        return self.pretrained_model.generate(*inputs, **settings)  # type: ignore[operator]

    def save_pretrained(self, folder: str | Path) -> None:
        """The policy as a model folder, or its adapters where it has some; the head is saved by the trainer."""
        self.pretrained_model.save_pretrained(folder)  # type: ignore[operator]


def create_reference_model(model: ValueHeadModel | nn.Module) -> nn.Module:
    """A frozen copy of a policy as it is now. Raises ModelError for one with adapters: it needs no copy."""
    policy = policy_in(model)
    if is_adapted(policy):
        raise ModelError("ref_model: leave it out. With adapters the reference is the policy with its adapters off")
    reference: nn.Module = copy.deepcopy(policy)
    return reference.requires_grad_(False).eval()


def policy_in(model: Any) -> Any:
    """The policy of a model with a value head; anything else as it is."""
    return model.pretrained_model if isinstance(model, ValueHeadModel) else model


class LengthSampler:
    """Lengths from `low` to `high` − 1, drawn by the seed: `sampler()` gives the next."""

    def __init__(self, low: int, high: int, seed: int = 0) -> None:
        if not 0 < low < high:
            raise ModelError(f"LengthSampler({low}, {high}): the first length must be above 0 and below the second")
        self.low, self.high, self.draws = low, high, stream(seed, "lengths")

    def __call__(self) -> int:
        """The next length."""
        return int(torch.randint(self.low, self.high, (), generator=self.draws))
