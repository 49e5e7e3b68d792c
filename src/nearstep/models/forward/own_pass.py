"""What is changed on a model while a forward pass of ours runs, and put back: a user's own calls find it as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep.models.attention.interface import PACKED


@dataclass
class _Switched:
    """A configuration that names our attention now, the name that it had, and how many passes need ours."""

    config: PreTrainedConfig
    former: str | None
    passes: int = 0


_SWITCHED: dict[int, _Switched] = {}  # by the configuration's id
_LOCK = Lock()


@contextmanager
def own_pass(trunk: nn.Module) -> Iterator[None]:
    """Packed attention on and dropout off, and layers recomputed where that was asked for, until the pass ends.

    Models of one configuration object may run passes in several threads: the last one puts the name back.
    """
    config: PreTrainedConfig = trunk.config
    with packed_attention(config), recomputing(trunk):
        yield


@contextmanager
def packed_attention(config: PreTrainedConfig) -> Iterator[None]:
    """Have the layers of a configuration's models attend by the plan that travels with the pass."""
    configs = {id(each): each for each in (config, config.get_text_config())}
    with _LOCK:
        for number, each in configs.items():
            _SWITCHED.setdefault(number, _Switched(each, each._attn_implementation)).passes += 1
            each._attn_implementation_internal = PACKED
    try:
        yield
    finally:
        with _LOCK:
            for number, each in configs.items():
                switched = _SWITCHED[number]
                switched.passes -= 1
                if switched.passes == 0:
                    each._attn_implementation_internal = switched.former
                    del _SWITCHED[number]


@dataclass(frozen=True)
class Recomputation:
    """How a layer is run where its activations are recomputed in the backward pass, when our pass itself is over.

    transformers calls it for a layer in training mode. The layer runs in evaluation mode all the same: OPT and others
    ask their own flag whether to drop out.
    """

    layer: nn.Module
    config: PreTrainedConfig

    def __call__(self, run: Callable[..., Any], *states: Any) -> Any:
        is_ours = id(self.config) in _SWITCHED
        again = partial(packed_attention, self.config) if is_ours else nullcontext

        def in_evaluation_mode(*states: Any) -> Any:
            was_training, self.layer.training = self.layer.training, False
            try:
                return run(*states)
            finally:
                self.layer.training = was_training

        # Without dropout nothing is random, and a generator's state cannot be read while a CUDA graph is captured.
        return checkpoint(
            in_evaluation_mode,
            *states,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
        )


def recompute_activations(model: PreTrainedModel, every: int = 1) -> None:
    """Have passes of ours recompute layers in the backward pass (gradient checkpointing): the first and then every
    n-th, the others keep their activations."""
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers[::every]:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = Recomputation(layer, model.base_model.config)


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Dropout off, and the layers in training mode that are to be recomputed: in no other does transformers ask them.

    Afterwards none is: in training mode they would drop the cache of a user's own `generate`.
    """
    was_training = model.training
    if was_training:
        model.eval()
    layers = _recomputed_layers(model) if torch.is_grad_enabled() else []
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        if was_training:
            model.train()


def _recomputed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Those of `recompute_activations`; a user may have switched on checkpointing of their own for their own passes."""
    layers = (layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))
    return [
        layer
        for layer in layers
        if layer.gradient_checkpointing and isinstance(layer._gradient_checkpointing_func, Recomputation)
    ]
