"""How weights narrower than float32 learn: the optimizer steps float32 copies, which are rounded back afterwards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

STATE = "master_weights"  # where an optimizer's state dict keeps the masters
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class MasterWeights:
    """Float32 masters of the narrow ones among some weights (bfloat16: 8 significant bits), pair by pair.

    A step of 3e-6 on a weight of 0.02 is 1/40 of the distance to the next bfloat16 number: rounded after every step,
    as plain AdamW does, the weight never moves; its master does, and the weight follows every fortieth step (mixed
    precision training, arXiv 1710.03740, section 3.1). Stochastic rounding (torchao's optimizers) needs four bytes less
    for each weight, but moves some weights by 40 steps at once, so that a small learning rate no longer means a policy
    near the old one, and draws random numbers on every process.

    The optimizer stays torch's own, over the masters: schedules, transformers' Trainer and callbacks take no other.
    What masters need around a step happens in its hooks.
    """

    narrow: Sequence[nn.Parameter] = ()
    masters: Sequence[nn.Parameter] = ()

    @staticmethod
    def of(weights: Iterable[nn.Parameter]) -> "MasterWeights":
        """Masters of those weights that are narrower than float32; none where none is."""
        narrow = [weight for weight in weights if is_narrow(weight)]
        return MasterWeights(
            narrow, [nn.Parameter(weight.detach().to(torch.float32), requires_grad=False) for weight in narrow]
        )

    def instead_of_narrow(self, weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The same weights in the same order, masters in the place of those that have one."""
        masters = {id(narrow): master for narrow, master in zip(self.narrow, self.masters, strict=True)}
        return [masters.get(id(weight), weight) for weight in weights]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Have an optimizer over the masters take gradients before its step, give weights back after it, and keep the
        masters in its state dict."""
        if not self.masters:
            return
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def take_gradients(self) -> None:
        """Add the weights' gradients to those of the masters, and free them.

        After every backward pass: in bfloat16 a sum of many micro-batches stops growing when the next one is below
        1/512 of it.
        """
        for narrow, master in zip(self.narrow, self.masters, strict=True):
            if narrow.grad is None:
                continue
            if master.grad is None:
                master.grad = narrow.grad.to(master.dtype)
            else:
                master.grad.add_(narrow.grad)
            narrow.grad = None

    def free_gradients(self) -> None:
        """Let go of the gradients of weights and masters."""
        for weight in (*self.narrow, *self.masters):
            weight.grad = None

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.take_gradients()
        # A weight that is no longer its master rounded was set elsewhere (a loaded folder, merged adapters).
        for narrow, master in zip(self.narrow, self.masters, strict=True):
            torch.where(master.to(narrow.dtype) == narrow, master, narrow.to(master.dtype), out=master)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.copy_back()
        self.free_gradients()  # the caller's zero_grad may be the model's, which does not reach masters

    @torch.no_grad()
    def copy_back(self) -> None:
        """Round the masters into the narrow weights."""
        if self.masters:
            torch._foreach_copy_(list(self.narrow), list(self.masters))

    def _save(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, STATE: [master.detach() for master in self.masters]}

    @torch.no_grad()
    def _load(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Masters as they were saved. A state without them was saved by an optimizer that had none: then masters start
        from the weights, as in a new run."""
        saved = state.get(STATE)
        if saved is None:
            return
        if [tensor.shape for tensor in saved] != [master.shape for master in self.masters]:
            raise ValueError("the state of the optimizer has master weights of other shapes: it is of another model")
        for master, tensor in zip(self.masters, saved, strict=True):
            master.copy_(tensor)
        self.copy_back()


def is_narrow(weight: nn.Parameter) -> bool:
    """Whether a weight has fewer bits than float32."""
    return weight.is_floating_point() and weight.dtype.itemsize < FLOAT32_BYTES
