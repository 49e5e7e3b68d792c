"""Whether what an object of an axis returned can be used: its shape, type and range.

It is asked of a small made-up batch before training, and of every real one. Each function says in words what is wrong,
None where nothing is; a caller that stops adds whose it was and when.
"""

import math

from torch import Tensor

from nearstep.algorithm.advantage_rules import Credit
from nearstep.common.errors import shorten


def credit_problem(credit: object, actions: int, *, needs_critic: bool) -> str | None:
    """What is wrong with advantages and targets for so many actions."""
    if not isinstance(credit, Credit):
        return f"credit returned {shorten(credit)}; return nearstep's Credit(advantages, targets)"
    if needs_critic and credit.targets is None:
        return "needs_critic is true and credit returned no targets for it to learn"
    problem = _numbers_problem(credit.advantages, actions, "advantages")
    if problem is None and credit.targets is not None:
        problem = _numbers_problem(credit.targets, actions, "targets")
    return problem


def region_problem(weight: object, tokens: int) -> str | None:
    """What is wrong with a trust region's weights for so many tokens. Reads no element, so a GPU is not waited for."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return (
            f"weight returned {_kind(weight)}; it has a float for each token, 1 where the gradient stays and 0 where "
            "it goes: of a comparison return .float()"
        )
    return _shape_problem(weight, tokens, "weight", "one for each token")


def state_numbers_problem(numbers: object, states: int, name: str) -> str | None:
    """What is wrong with a value head's losses, or values, of so many states. Reads no element, so a GPU is not waited
    for."""
    if not isinstance(numbers, Tensor) or not numbers.is_floating_point():
        return f"{name} is {_kind(numbers)}; it has a float for each state, and is not summed yet"
    return _shape_problem(numbers, states, name, "one for each state")


def weights_problem(weights: object, actions: int) -> str | None:
    """What is wrong with an aggregation's weights for so many actions. On a GPU, one wait for each micro-batch."""
    problem = _floats_problem(weights, actions, "weights")
    if problem is not None or not isinstance(weights, Tensor):
        return problem
    fits = weights.isfinite() & (weights >= 0)
    if bool(fits.all()):
        return None
    return f"{_first('weights', weights, fits)}; a weight is finite and from 0 on: a negative one turns its loss round"


def importance_problem(importance: object, actions: int) -> str | None:
    """What is wrong with a correction's weights for so many actions. On a GPU, one wait for each call."""
    problem = _floats_problem(importance, actions, "importance")
    if problem is not None or not isinstance(importance, Tensor):
        return problem
    fits = importance >= 0  # one that is not finite is seen in the gradient, with what it came from
    return (
        None
        if bool((fits | importance.isnan()).all())
        else f"{_first('importance', importance, fits)}; it is from 0 on"
    )


def divisor_problem(divisor: float) -> str | None:
    """What is wrong with what the loss of a minibatch is divided by."""
    return None if math.isfinite(divisor) and divisor > 0 else f"is {divisor:g}; it must be above 0: clamp(min=1)"


def _numbers_problem(values: object, actions: int, name: str) -> str | None:
    """What is wrong with a tensor that has one finite float for each action."""
    problem = _floats_problem(values, actions, name)
    if problem is not None or not isinstance(values, Tensor):
        return problem
    fits = values.isfinite()
    return None if bool(fits.all()) else f"{_first(name, values, fits)}; all must be finite"


def _first(name: str, values: Tensor, fits: Tensor) -> str:
    """The first value that does not fit."""
    place = int((~fits).nonzero()[0])
    return f"{name} is {float(values[place]):g} at action {place} of {len(values)}"


def _floats_problem(values: object, actions: int, name: str) -> str | None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return f"{name} is {_kind(values)}; return a tensor of floats, one for each action"
    return _shape_problem(values, actions, name, "one for each action")


def _shape_problem(values: Tensor, items: int, name: str, meaning: str) -> str | None:
    if tuple(values.shape) == (items,):
        return None
    return f"{name} has shape {list(values.shape)} and should have {[items]}, {meaning}"


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else shorten(value)
