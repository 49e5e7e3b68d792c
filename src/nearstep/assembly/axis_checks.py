"""Whether an object of the user's fits its axis: members by name, then a small made-up batch, before any training.

The laws of `nearstep.testing` go further; this is what every run can afford.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from nearstep.algorithm.advantage_rules import Advantage, CreditInputs
from nearstep.algorithm.aggregation import LossAggregation, MinibatchCounts
from nearstep.algorithm.correction import CorrectionRule
from nearstep.algorithm.kl_controllers import KLController, MeasuredKL
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs, TrustRegion
from nearstep.algorithm.value_heads import MeasuresStates, ValueHead, ValueTargets
from nearstep.common.errors import ConfigError, shorten
from nearstep.training.axis_results import (
    credit_problem,
    divisor_problem,
    importance_problem,
    region_problem,
    state_numbers_problem,
    weights_problem,
)
from nearstep.training.schedules import CriticSchedule, Phase, reweighting_problem

T = TypeVar("T")
UPDATES_TRIED = 1000  # a schedule is asked for so many updates, and for the last


def fitting_trust_region(found: object, what: str) -> TrustRegion:
    """The object, tried on four tokens. Raises ConfigError where it is no trust region or returns no weights."""
    if "inside" in dir(found) and "weight" not in dir(found):
        raise ConfigError(
            f"{what}: inside(now, old, advantages) is now weight(now, old, advantages, rows), and returns a float for "
            "each token, the factor on its gradient: rename it, take rows as well, and return the mask as .float()"
        )
    require_members(found, what, ("top_k", "weight"), "it needs top_k and weight(now, old, advantages, rows)")
    assert isinstance(found, TrustRegion)
    region, top_k = found, found.top_k
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ConfigError(f"{what}: top_k is {shorten(top_k)}; it is a whole number, 0 for no top tokens")
    old = torch.tensor([-0.1, -1.0, -2.0, -5.0])
    moved = torch.tensor([-0.05, -1.5, -2.0, -3.0])
    top = torch.log_softmax(-torch.arange(top_k + 1.0), 0)[:top_k].expand(4, -1).contiguous() if top_k else None
    advantages, rows = torch.tensor([1.0, -1.0, 0.5, -0.5]), ActionRows(torch.tensor([1, 3]), torch.tensor([0, 0]))
    weight: object = try_out(
        what, lambda: region.weight(TokenLogprobs(moved, top), TokenLogprobs(old, top), advantages, rows)
    )
    require_none(what, region_problem(weight, 4))
    return region


def fitting_advantage(found: object, what: str, group_size: int) -> Advantage:
    """The object, tried on two groups of rows. Raises ConfigError where it is no rule for advantages."""
    members = ("needs_critic", "uses_token_rewards", "credit")
    require_members(
        found, what, members, "it needs needs_critic, uses_token_rewards (both true or false) and credit(inputs)"
    )
    assert isinstance(found, Advantage)
    rule = found
    for name, value in (("needs_critic", rule.needs_critic), ("uses_token_rewards", rule.uses_token_rewards)):
        if not isinstance(value, bool):
            raise ConfigError(f"{what}: {name} is {shorten(value)}; it is True or False")
    inputs = made_up_inputs(group_size, with_critic=rule.needs_critic)
    credit: object = try_out(what, lambda: rule.credit(inputs))
    require_none(what, credit_problem(credit, len(inputs.rewards), needs_critic=rule.needs_critic))
    return rule


def made_up_inputs(group_size: int, *, with_critic: bool) -> CreditInputs:
    """Two groups of rows with 1, 2, 3, 1, … actions, the score at the last; values of ½ where there is a critic."""
    rows = 2 * group_size
    counts = torch.arange(rows) % 3 + 1
    rewards = torch.zeros(int(counts.sum()))
    rewards[counts.cumsum(0) - 1] = torch.linspace(-1, 1, rows)
    return CreditInputs(
        rewards=rewards,
        values=torch.full_like(rewards, 0.5 if with_critic else 0.0),
        action_counts=counts,
        final_values=torch.zeros(rows),
        final_advantages=torch.zeros(rows),
        scored=torch.ones(rows, dtype=torch.bool),
        update=1,
        response_length=3,
        group_size=group_size,
    )


def fitting_kl_controller(found: object, what: str, updates: int) -> KLController:
    """The object, asked for two coefficients. Raises ConfigError where it is no KL controller."""
    require_members(found, what, ("first", "next"), "it needs first() and next(coefficient, measured)")
    assert isinstance(found, KLController)
    controller = found
    first = try_out(what, controller.first)
    _require_coefficient(first, what, "first()")
    later = try_out(what, lambda: controller.next(first, MeasuredKL(kl=0.1, episodes=8, update=1, updates=updates)))
    _require_coefficient(later, what, "next(…)")
    return controller


def fitting_schedule(found: object, what: str, updates: int) -> CriticSchedule:
    """The object, asked for the phases of the run. Raises ConfigError where it is no schedule, breaks a universal law
    of `nearstep.testing.schedules`, or never trains the policy."""
    require_members(found, what, ("phases",), "it needs phases(update)")
    assert isinstance(found, CriticSchedule)
    tried: dict[int, list[Phase]] = {}
    for update in _updates_to_try(updates):
        phases: object = _asked(found, what, update)
        if not isinstance(phases, list) or not all(isinstance(phase, Phase) for phase in phases):
            raise ConfigError(f"{what}: phases({update}) returned {shorten(phases)}; return a list of Phase")
        for phase in phases:
            require_none(f"{what}: phases({update}) holds {shorten(phase)}", _phase_problem(phase, update))
        require_none(f"{what}: phases({update})", reweighting_problem(phases))
        tried[update] = list(phases)
    for update, before in reversed(tried.items()):
        again = _asked(found, what, update)
        if again != before:
            raise ConfigError(
                f"{what}: phases({update}) was {shorten(before)} and is {shorten(again)} when asked again; a resumed "
                "run asks anew: let it depend on the number of the update alone"
            )
    if not any(phase.policy for update in range(1, updates + 1) for phase in tried.get(update) or found.phases(update)):
        raise ConfigError(
            f"{what} trains the policy in none of the run's {updates} updates: return phases with policy=True"
        )
    return found


def _asked(schedule: CriticSchedule, what: str, update: int) -> object:
    return try_out(what, lambda: schedule.phases(update), "when it was asked for the phases of the run")


def _phase_problem(phase: Phase, update: int) -> str | None:
    if phase.update != update:
        return f"its minibatches would be drawn for another update; write Phase({update}, …)"
    if isinstance(phase.epochs, bool) or not isinstance(phase.epochs, int) or phase.epochs < 1:
        return "epochs is a whole number from 1 on; leave out a phase without epochs"
    return None if phase.policy or phase.critic else "it trains nothing; leave it out"


def require_no_critic_phase(schedule: CriticSchedule, what: str, advantage: str, updates: int) -> None:
    """Raises ConfigError where a schedule trains a critic and the advantages have none."""
    for update in _updates_to_try(updates):
        if any(phase.critic for phase in schedule.phases(update)):
            raise ConfigError(
                f"{what} trains a critic in update {update}, and {advantage} has none: use an advantage with a critic "
                "(gae), or phases with critic=False"
            )


def fitting_aggregation(found: object, what: str) -> LossAggregation:
    """The object, tried on three rows. Raises ConfigError where it is no loss aggregation."""
    require_members(found, what, ("weights", "divisor"), "it needs weights(action_counts) and divisor(counts)")
    assert isinstance(found, LossAggregation)
    aggregation = found
    weights = try_out(what, lambda: aggregation.weights(torch.tensor([2, 0, 3, 60, 1000])))
    require_none(what, weights_problem(weights, 1065))
    if not bool(weights.any()):
        raise ConfigError(
            f"{what}: weights are all 0 for rows of 2, 0, 3, 60 and 1000 actions: nothing would be learned"
        )
    for tokens, rows in ((5, 2), (0, 0)):
        counts = MinibatchCounts(torch.tensor(tokens), torch.tensor(rows))
        divisor = try_out(what, lambda counts=counts: float(aggregation.divisor(counts)))  # type: ignore[misc]
        problem = divisor_problem(divisor)
        if problem:
            raise ConfigError(f"{what}: divisor for {tokens} tokens in {rows} rows {problem}")
    return aggregation


def fitting_value_head(found: object, what: str) -> ValueHead:
    """The object, tried on six states. Raises ConfigError where it is no head of a critic."""
    members = ("outputs", "starts_at_zero", "value_range", "values", "loss")
    needs = "it needs outputs, starts_at_zero, value_range, values(outputs) and loss(outputs, learned)"
    require_members(found, what, members, needs)
    assert isinstance(found, ValueHead)
    head, count, limits = found, found.outputs, found.value_range
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{what}: outputs is {shorten(count)}; it is a whole number from 1 on")
    if not isinstance(head.starts_at_zero, bool):
        raise ConfigError(f"{what}: starts_at_zero is {shorten(head.starts_at_zero)}; it is True or False")
    if limits is not None and not _is_range(limits):
        raise ConfigError(
            f"{what}: value_range is {shorten(limits)}; it is None, or two finite numbers (least, largest)"
        )
    low, high = (-1.0, 1.0) if limits is None else limits
    outputs = torch.linspace(-1, 1, 6 * count).reshape(6, count).requires_grad_()
    learned = ValueTargets(torch.linspace(low, high, 6), torch.full((6,), (low + high) / 2), torch.arange(6) % 2)
    require_none(what, state_numbers_problem(try_out(what, lambda: head.values(outputs)), 6, "values"))
    loss = try_out(what, lambda: head.loss(outputs, learned))
    require_none(what, state_numbers_problem(loss, 6, "loss"))
    if not loss.requires_grad:
        raise ConfigError(f"{what}: loss carries no gradient of the outputs: nothing would be learned")
    if isinstance(head, MeasuresStates):
        measured = try_out(what, lambda: head.measures(outputs.detach(), learned))
        for name, numbers in measured.items():
            require_none(what, state_numbers_problem(numbers, 6, f"measures()[{name!r}]"))
    return head


def _is_range(limits: object) -> bool:
    if not isinstance(limits, tuple) or len(limits) != 2:
        return False
    numbers = [each for each in limits if isinstance(each, int | float) and math.isfinite(each)]
    return len(numbers) == 2 and numbers[0] < numbers[1]


def fitting_correction(found: object, what: str) -> CorrectionRule:
    """The object, tried on four tokens. Raises ConfigError where it is no correction or returns no weights."""
    require_members(found, what, ("importance",), "it needs importance(trainer, engine, rows)")
    assert isinstance(found, CorrectionRule)
    rule = found
    trainer, engine = torch.tensor([-0.1, -1.5, -2.0, -3.0]), torch.tensor([-0.1, -1.0, -2.0, -5.0])
    rows = ActionRows(torch.tensor([1, 3]), torch.tensor([1, 1]))
    importance: object = try_out(what, lambda: rule.importance(trainer, engine, rows))
    require_none(what, importance_problem(importance, 4))
    return rule


def _updates_to_try(updates: int) -> list[int]:
    return sorted({*range(1, min(updates, UPDATES_TRIED) + 1), updates})


def require_members(found: object, what: str, members: tuple[str, ...], needs: str) -> None:
    missing = [name for name in members if name not in dir(found)]
    if missing:
        names = " and no ".join(f"`{name}`" for name in missing)
        raise ConfigError(f"{what} (a {type(found).__name__}) has no {names}; {needs}, see docs/extending.md")


def require_none(what: str, problem: str | None) -> None:
    if problem is not None:
        raise ConfigError(f"{what}: {problem}")


def try_out(what: str, call: Callable[[], T], where: str = "on a small made-up batch") -> T:
    try:
        return call()
    except Exception as error:
        raise ConfigError(
            f"{what} failed {where}: {type(error).__name__}: {error}. `nearstep check` tries it alone"
        ) from error


def _require_coefficient(value: object, what: str, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{what}: {name} is {shorten(value)}; a coefficient is a number from 0 on")
