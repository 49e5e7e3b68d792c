"""The laws of backends: what crosses between processes. Under torchrun every process calls this, and all must agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nearstep.scale.backend import RoleNetwork
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.world import small_model

CLOSE = 1e-5


def check_backend(backend: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a backend to its laws, on all of its processes. Raises ConformanceError with the first that is broken."""
    return hold(f"backend {type(backend).__name__}", Group(backend), LAWS, skip)


@dataclass(frozen=True)
class Group:
    """A backend, and a model that has been placed by it."""

    backend: Any  # a Backend, as the first law says

    @property
    def own(self) -> Tensor:
        """Numbers that are others on every process."""
        number: int = self.backend.rank + 1
        return torch.tensor([1.0, -2.0, 0.5], device=self.backend.device) * number

    @cached_property
    def model(self) -> nn.Module:
        """A model of other weights on every process, placed once."""
        placed: nn.Module = self.backend.place(small_model(seed=self.backend.rank))
        return placed

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The placed model's weights."""
        return list(self.model.parameters())


def _protocol(group: Group) -> str | None:
    return lacks(group.backend, "backend")


def _ranks(group: Group) -> str | None:
    b = group.backend
    if not 0 <= b.rank < b.world_size or b.local_rank < 0 or not isinstance(b.device, torch.device):
        return f"rank {b.rank}, local_rank {b.local_rank}, world_size {b.world_size}, device {b.device!r}"
    seen = b.gather(b.rank)
    return None if seen == list(range(b.world_size)) else f"gather(rank) is {seen} with world_size {b.world_size}"


def _sums(group: Group) -> str | None:
    own, before = group.own, group.own
    everybody = torch.stack([values.to(own.device) for values in group.backend.gather(own.cpu())])
    total = group.backend.add_up(own)
    if not torch.allclose(total, everybody.sum(0), atol=CLOSE):
        return f"add_up gave {total.tolist()}, the processes hold {everybody.tolist()}"
    return None if torch.equal(own, before) else "add_up changed what it was given"


def _gather(group: Group) -> str | None:
    item = {"rank": group.backend.rank, "text": "x" * (group.backend.rank + 1), "numbers": group.own.cpu()}
    items = group.backend.gather(item)
    texts = [found["text"] for found in items]
    expected = ["x" * (rank + 1) for rank in range(group.backend.world_size)]
    if texts != expected:
        return f"items arrived as {texts}"
    on_main = [found["text"] for found in group.backend.gather_to_main(item)]
    if on_main != (expected if group.backend.is_main else []):
        return f"gather_to_main brought {on_main} to rank {group.backend.rank}"
    return None


def _placed(group: Group) -> str | None:
    plain = small_model(seed=0)
    if {name for name, _ in group.model.named_parameters()} != {name for name, _ in plain.named_parameters()}:
        return "its weights have other names after place"
    placed = dict(group.model.named_parameters())
    for name, weights in plain.named_parameters():
        found = placed[name]
        if found.device.type != group.backend.device.type:
            return f"{name} is on {found.device}, the backend computes on {group.backend.device}"
        if found.shape != weights.shape or not torch.equal(found.detach().cpu(), weights.detach()):
            return f"{name} is not what rank 0 had, on rank {group.backend.rank}"
    return None


def _saved(group: Group) -> str | None:
    found = group.backend.whole(group.model)
    if not group.backend.is_main:
        return None if found is None else f"rank {group.backend.rank} was given weights to save"
    if found is None:
        return "rank 0 was given nothing to save"
    saved, expected = found.model.state_dict(), small_model(seed=0).state_dict()
    if saved.keys() != expected.keys():
        return f"names differ: {sorted(saved.keys() ^ expected.keys())[:3]}"
    wrong = [name for name, weights in saved.items() if not torch.equal(weights.cpu(), expected[name])]
    return f"{wrong[0]} is not the whole tensor" if wrong else None


def _gradients(group: Group) -> str | None:
    world, rank = group.backend.world_size, group.backend.rank
    shared, last_only, nobody, *_ = group.parameters
    for parameter in group.parameters:
        parameter.grad = None
    shared.grad = torch.full_like(shared, rank + 1.0)
    if rank == world - 1:
        last_only.grad = torch.full_like(last_only, 5.0)
    group.backend.add_up_gradients([shared, last_only, nobody])
    expected = world * (world + 1) / 2
    if shared.grad is None or not torch.allclose(shared.grad, torch.full_like(shared, expected)):
        return f"gradients of 1 … {world} do not add up to {expected:g}"
    if last_only.grad is None or not torch.allclose(last_only.grad, torch.full_like(last_only, 5.0)):
        return f"a gradient that only rank {world - 1} has is not on rank {rank}"
    return None if nobody.grad is None else "weights without a gradient anywhere got one: Adam would move them"


def _norm(group: Group) -> str | None:
    for number, parameter in enumerate(group.parameters):
        parameter.grad = None if number == 0 else torch.full_like(parameter, float(number))
    plain = list(small_model(seed=0).parameters())
    expected = sum(number**2 * weights.numel() for number, weights in enumerate(plain)) ** 0.5
    found = float(group.backend.gradient_norm(group.parameters))
    return None if abs(found - expected) <= CLOSE * expected else f"the norm is {found:g}, it should be {expected:g}"


def _spread(group: Group) -> str | None:
    """A network of the loop: its own passes, its gradients over all processes, and its whole weights."""
    backend, plain = group.backend, small_model(seed=0).to(group.backend.device)
    model = backend.stage(small_model(seed=backend.rank))
    run = backend.spread({"policy": RoleNetwork(model, one_pass=True)})["policy"]
    ids = torch.arange(6, device=backend.device)[None]
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        with backend.gathered(model):
            found = model(input_ids=ids).logits
    if not torch.allclose(found, expected, atol=CLOSE):
        return f"within gathered its logits are not those of rank 0's weights, on rank {backend.rank}"
    plain(input_ids=ids).logits.square().mean().backward()
    backend.backward(run(lambda: model(input_ids=ids).logits.square().mean()))
    backend.add_up_gradients(list(model.parameters()))
    ours, one = float(backend.gradient_norm(list(model.parameters()))), total_norm(plain)
    if abs(ours - backend.world_size * one) > CLOSE * (1 + backend.world_size * one):
        return f"with one gradient of norm {one:g} on each process the sum has norm {ours:g}"
    whole = backend.whole(model)
    if whole is None or not backend.is_main:
        return None
    kept, wanted = whole.model.state_dict(), plain.state_dict()
    wrong = [name for name, weights in wanted.items() if not torch.equal(kept[name].cpu(), weights.cpu())]
    return f"{wrong[0]} of the whole network is not rank 0's" if wrong else None


def total_norm(model: nn.Module) -> float:
    """Norm of the gradients of a whole model."""
    return float(nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None]))


def _waits(group: Group) -> str | None:
    group.backend.wait_for_all()
    return None


LAWS: tuple[Law[Group], ...] = (
    Law("protocol", "it has all members of nearstep.scale.backend.Backend", _protocol),
    Law("ranks", "ranks count from 0 to world_size − 1", _ranks),
    Law(
        "gather",
        "gather brings every process's object, in the order of ranks, to all; gather_to_main to rank 0",
        _gather,
    ),
    Law("sums", "add_up is the sum over all processes, the same on each, its input untouched", _sums),
    Law("placed", "place puts rank 0's weights on the device of every process, under their names", _placed),
    Law("saved", "whole is a network with whole weights on rank 0 and None elsewhere", _saved),
    Law(
        "gradients",
        "gradients are summed; one that is missing here counts as zero, one that nobody has stays None",
        _gradients,
    ),
    Law("norm", "gradient_norm is the Euclidean norm over all gradients there are", _norm),
    Law(
        "spread",
        "a network that is spread has rank 0's weights in gathered, in its passes and as a whole; gradients are summed",
        _spread,
    ),
    Law("waits", "wait_for_all returns once all have come", _waits),
)
