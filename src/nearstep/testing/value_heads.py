"""The laws of value heads: what a critic's outputs may mean, and how a loss must move them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.value_heads import MeasuresStates, ValueHead, ValueTargets
from nearstep.common.random_streams import stream
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STATES, RESPONSES = 96, 24
FAR = 40.0  # outputs at which a sigmoid in float32 is 0 or 1
NO_RANGE = (-1.0, 1.0)  # of the returns here, for a head that has none
STEPS, STEP_SIZE, SMALL_STEP = 250, 0.1, 1e-3
CLOSE, NEAR = 1e-4, 0.03  # as shares of the range
PULLED = 2e-3  # likewise: how far a step may move a value that is right
LOW_RETURN, HIGH_RETURN = 0.2, 0.8  # as shares of it too


def check_value_head(head: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a value head to its laws, on outputs of 96 states. Raises ConformanceError with the first that is broken."""
    return hold(f"value head {type(head).__name__}", head, LAWS, skip)


def _range(head: ValueHead) -> tuple[float, float]:
    return NO_RANGE if head.value_range is None else head.value_range


def _outputs(head: ValueHead) -> Tensor:
    """Random outputs: near 0, and in the last third of the states far from it."""
    outputs = torch.randn(STATES, head.outputs, generator=stream(0, "conformance/value_heads"), dtype=torch.float64)
    outputs[-STATES // 3 :] *= FAR
    return outputs


def _learned(head: ValueHead, values: Tensor) -> ValueTargets:
    """Returns from end to end of the range; the values at rollout are those given, less a little."""
    low, high = _range(head)
    targets = torch.linspace(low, high, STATES, dtype=values.dtype)
    return ValueTargets(targets, values - 0.1 * (high - low), torch.arange(STATES) % RESPONSES)


def _protocol(head: Any) -> str | None:
    missing = lacks(head, "value_head")
    if missing:
        return missing
    if isinstance(head.outputs, bool) or not isinstance(head.outputs, int) or head.outputs < 1:
        return f"outputs is {head.outputs!r}"
    if not isinstance(head.starts_at_zero, bool):
        return f"starts_at_zero is {head.starts_at_zero!r}"
    limits = head.value_range
    fits = limits is None or (len(limits) == 2 and math.isfinite(limits[0] + limits[1]) and limits[0] < limits[1])
    return None if fits else f"value_range is {limits!r}"


def _one_number_each(head: ValueHead) -> str | None:
    for rows in (STATES, 0):
        outputs = _outputs(head)[:rows].float().requires_grad_()
        values: object = head.values(outputs)
        if found := _not_numbers(values, rows, "values"):
            return found
        assert isinstance(values, Tensor)
        learned = _few(_learned(head, head.values(_outputs(head).float())), slice(rows))
        loss: object = head.loss(outputs, learned)
        if found := _not_numbers(loss, rows, "loss"):
            return found
        if isinstance(head, MeasuresStates):
            for name, numbers in head.measures(outputs.detach(), learned).items():
                if found := _not_numbers(numbers, rows, f"measures()[{name!r}]"):
                    return found
    return None


def _not_numbers(numbers: object, states: int, name: str) -> str | None:
    if not isinstance(numbers, Tensor) or numbers.dtype not in (torch.float32, torch.float64):
        kind = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
        return f"{name} is {kind}; it is float32 at least"
    if numbers.shape != (states,):
        return f"{name} has shape {list(numbers.shape)} for {states} states"
    wrong = (~numbers.isfinite()).nonzero()
    return f"{name} is {float(numbers[int(wrong[0])])} at state {int(wrong[0])}" if len(wrong) else None


def _in_range(head: ValueHead) -> str | None:
    low, high = _range(head)
    values, slack = head.values(_outputs(head)), CLOSE * (high - low)
    return _first((values < low - slack) | (values > high + slack), values, f"outside [{low:g}, {high:g}]")


def _gradient(head: ValueHead) -> str | None:
    outputs = _outputs(head).float().requires_grad_()
    values = head.values(outputs).detach()
    (found,) = torch.autograd.grad(head.loss(outputs, _learned(head, values)).sum(), outputs)
    if not bool(found.isfinite().all()):
        return f"state {int((~found.isfinite()).any(1).nonzero()[0])} has a gradient that is not finite"
    return None if bool(found.any()) else "no output has a gradient"


def _every_type(head: ValueHead) -> str | None:
    low, high = _range(head)
    for dtype in DTYPES:
        outputs = _outputs(head).to(dtype)
        values, exact = head.values(outputs), head.values(outputs.double())
        learned = _learned(head, exact)
        pairs = ((values, exact, "value"), (head.loss(outputs, learned), head.loss(outputs.double(), learned), "loss"))
        for narrow, wide, name in pairs:
            gap = (narrow.double() - wide).abs() > CLOSE * (high - low + wide.abs())
            if found := _first(
                gap, narrow, f"{name} of {dtype} outputs is another than of the same numbers in float64"
            ):
                return f"{found}. Compute in float32 at least (nearstep.algorithm.precision.wide)"
    return None


def _own_state(head: ValueHead) -> str | None:
    outputs, values = _outputs(head), head.values(_outputs(head))
    learned = _learned(head, values)
    loss = head.loss(outputs, learned)
    backwards = torch.arange(STATES).flip(0)
    for rows, how in ((backwards, "in another order"), (torch.arange(0, STATES, 7), "among fewer states")):
        for name, whole, part in (
            ("value", values, head.values(outputs[rows])),
            ("loss", loss, head.loss(outputs[rows], _few(learned, rows))),
        ):
            gap = (whole[rows] - part).abs() > CLOSE * (1 + part.abs())
            if found := _first(gap, part, f"{name} is another {how}"):
                return found
    return None


def _repeatable(head: ValueHead) -> str | None:
    outputs = _outputs(head)
    learned = _learned(head, head.values(outputs))
    same = torch.equal(head.values(outputs), head.values(outputs))
    same = same and torch.equal(head.loss(outputs, learned), head.loss(outputs, learned))
    return None if same else "the same outputs gave other numbers when asked again"


def _inputs_untouched(head: ValueHead) -> str | None:
    outputs = _outputs(head)
    learned = _learned(head, head.values(outputs))
    before = [each.clone() for each in (outputs, learned.targets, learned.old_values, learned.samples)]
    head.loss(outputs, learned)
    after = (outputs, learned.targets, learned.old_values, learned.samples)
    same = all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return None if same else "outputs or targets were changed in place; work on copies"


def _toward(head: ValueHead) -> str | None:
    """One small step on the outputs that all states begin with."""
    low, high = _range(head)
    for share in (0.1, 0.9):
        layer = torch.zeros(head.outputs, dtype=torch.float64, requires_grad=True)
        start, target = _value(head, layer), low + share * (high - low)
        (slope,) = torch.autograd.grad(_mean_loss(head, layer, torch.full((STATES,), target).double()), layer)
        moved = _value(head, (layer - SMALL_STEP * slope).detach())
        if (moved - start) * (target - start) <= 0:
            return f"at value {start:.4g} with a return of {target:.4g} a step gives {moved:.6g}"
    return None


def _learns(head: ValueHead) -> str | None:
    low, high = _range(head)
    target = low + HIGH_RETURN * (high - low)
    value = _trained(head, torch.full((STATES,), target, dtype=torch.float64))
    return _not_near(value, target, high - low, f"taught a return of {target:.4g}")


def _mean(head: ValueHead) -> str | None:
    low, high = _range(head)
    shares = torch.full((STATES,), LOW_RETURN, dtype=torch.float64)
    shares[::4] = HIGH_RETURN
    targets = low + shares * (high - low)
    mean = float(targets.mean())
    words = f"taught {float(targets[1]):.4g} in three of four states and {float(targets[0]):.4g} in the fourth"
    return _not_near(_trained(head, targets), mean, high - low, f"{words}, {mean:.4g} on average,")


def _not_pulled(head: ValueHead) -> str | None:
    """Where the value is the return already, a step is the same whatever the value was at rollout."""
    low, high = _range(head)
    targets = torch.full((STATES,), low + HIGH_RETURN * (high - low), dtype=torch.float64)
    layer = _taught(head, targets)
    value = _value(head, layer)
    expected = _value_after_step(head, layer, targets, value)
    for old in (value - 0.5 * (high - low), value + 0.5 * (high - low)):
        after = _value_after_step(head, layer, targets, old)
        if abs(after - expected) > PULLED * (high - low):
            return (
                f"taught a return of {float(targets[0]):.4g} it says {value:.4g}; a step moves it to {expected:.4g}, "
                f"and where it said {old:.4g} at rollout to {after:.4g}"
            )
    return None


def _value_after_step(head: ValueHead, layer: Tensor, targets: Tensor, old: float) -> float:
    """The value after a step on states whose value was `old` at rollout."""
    moving = layer.clone().requires_grad_()
    samples = torch.arange(STATES) // (STATES // RESPONSES)
    learned = ValueTargets(targets, torch.full_like(targets, old), samples)
    (slope,) = torch.autograd.grad(head.loss(moving.expand(STATES, -1), learned).mean(), moving)
    return _value(head, layer - STEP_SIZE * slope)


def _not_near(value: float, wanted: float, width: float, taught: str) -> str | None:
    return None if abs(value - wanted) <= NEAR * width else f"{taught} it says {value:.4g}"


def _trained(head: ValueHead, targets: Tensor) -> float:
    """The value once the outputs, the same for all states, have learned from these returns."""
    return _value(head, _taught(head, targets))


def _taught(head: ValueHead, targets: Tensor) -> Tensor:
    """The outputs then."""
    layer = torch.zeros(head.outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([layer], lr=STEP_SIZE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = STEP_SIZE * (1 - step / STEPS)
        optimizer.zero_grad()
        _mean_loss(head, layer, targets).backward()
        optimizer.step()
    return layer.detach()


def _mean_loss(head: ValueHead, layer: Tensor, targets: Tensor) -> Tensor:
    """Four states of each response in turn, all with the same outputs, which are those at rollout as well."""
    outputs = layer.expand(STATES, -1)
    samples = torch.arange(STATES) // (STATES // RESPONSES)
    return head.loss(outputs, ValueTargets(targets, head.values(outputs).detach(), samples)).mean()


def _value(head: ValueHead, layer: Tensor) -> float:
    return float(head.values(layer.detach()[None])[0])


def _few(learned: ValueTargets, rows: Any) -> ValueTargets:
    return replace(
        learned, targets=learned.targets[rows], old_values=learned.old_values[rows], samples=learned.samples[rows]
    )


def _first(wrong: Tensor, numbers: Tensor, what: str) -> str | None:
    places = wrong.nonzero()
    return f"state {int(places[0])}: {float(numbers[int(places[0])]):.6g}: {what}" if len(places) else None


def _has_range(head: Any) -> bool:
    return head.value_range is not None


def _law(name: str, statement: str, breaks: Callable[[ValueHead], str | None], **more: Any) -> Law[ValueHead]:
    return Law(name, statement, breaks, **more)


LAWS: tuple[Law[ValueHead], ...] = (
    _law("protocol", "outputs from 1 on, starts_at_zero, value_range, values and loss are there", _protocol),
    _law(
        "one_number_each",
        "a finite value and loss for each state, in float32 at least; none for none",
        _one_number_each,
    ),
    _law("in_range", "values lie in value_range, whatever the outputs", _in_range, applies=_has_range),
    _law("inputs_untouched", "outputs and targets are not changed", _inputs_untouched),
    _law("repeatable", "the same outputs give the same numbers", _repeatable),
    _law("gradient", "the loss has a finite gradient, and not 0 everywhere", _gradient),
    _law("every_type", "narrow outputs give what the same numbers give in float64", _every_type),
    _law(
        "own_state",
        "a state's value and loss depend on its own numbers alone, so that splits change nothing",
        _own_state,
    ),
    _law("toward", "from outputs of 0 a small step moves the value toward the return", _toward),
    _law("learns", "taught one return, the value comes to be that return", _learns, universal=False),
    _law("not_pulled", "what it was at rollout does not move a value that is right", _not_pulled, universal=False),
    _law("mean", "taught several returns, the value comes to be their mean", _mean, universal=False),
)
