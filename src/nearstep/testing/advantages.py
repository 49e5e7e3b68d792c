"""The laws of rules for advantages."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.advantage_rules import Advantage, Credit, CreditInputs, RewardPart
from nearstep.algorithm.ragged import places_in_row, sum_by_row, take_rows
from nearstep.common.random_streams import stream
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold

GROUP_SIZE = 3
LENGTHS = (3, 1, 2, 4, 2, 2, 1, 5, 3)  # three prompts with three responses each
TURN_LENGTH = 2
UNSCORED = 4
CLOSE = 1e-5
WAIT_SECONDS = 20.0  # for another process that asks less often


def check_advantage(advantage: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a rule for advantages to its laws, on groups of three responses. Raises ConformanceError with the first that
    is broken."""
    return hold(f"advantage {type(advantage).__name__}", advantage, LAWS, skip)


def _inputs(advantage: Advantage) -> CreditInputs:
    """Nine rows of three prompts, one without a score; values only where there is a critic. Turns have two actions."""
    draws = stream(0, "conformance/advantages")
    counts = torch.tensor(LENGTHS)
    rewards = torch.randn(int(counts.sum()), generator=draws) * 0.1
    rewards[counts.cumsum(0) - 1] += torch.randn(len(counts), generator=draws)
    has_critic = float(advantage.needs_critic)
    return CreditInputs(
        rewards=rewards,
        values=torch.randn(len(rewards), generator=draws) * has_critic,
        action_counts=counts,
        final_values=torch.zeros(len(counts)),
        final_advantages=torch.zeros(len(counts)),
        scored=torch.arange(len(counts)) != UNSCORED,
        update=1,
        response_length=max(LENGTHS),
        turn_starts=places_in_row(counts) % TURN_LENGTH == 0,
        group_size=GROUP_SIZE,
        parts=_parts(draws),
    )


def _parts(draws: torch.Generator) -> tuple[RewardPart, ...]:
    """Two parts of the reward, the second of which did not apply to one row, nor to the one without a score."""
    often, seldom = (torch.randn(len(LENGTHS), generator=draws) for _ in range(2))
    seldom[[1, UNSCORED]] = torch.nan
    return RewardPart("often", 1.0, often), RewardPart("seldom", 0.5, seldom)


def _protocol(advantage: Any) -> str | None:
    missing = lacks(advantage, "advantage")
    if missing:
        return missing
    flags = {"needs_critic": advantage.needs_critic, "uses_token_rewards": advantage.uses_token_rewards}
    wrong = [f"{name} is {value!r}" for name, value in flags.items() if not isinstance(value, bool)]
    return wrong[0] if wrong else None


def _one_value_each(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    credit: object = advantage.credit(inputs)
    if not isinstance(credit, Credit):
        return f"credit returned a {type(credit).__name__}"
    for name, values in (("advantages", credit.advantages), ("targets", credit.targets)):
        if values is None and name == "targets" and not advantage.needs_critic:
            continue
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return f"{name} is {values!r}"
        if values.shape != inputs.rewards.shape:
            return f"{name} has shape {list(values.shape)} for {len(inputs.rewards)} actions"
        if not bool(values.isfinite().all()):
            return f"{name} of row {_row(inputs, ~values.isfinite())} is not finite"
    return None


def _repeatable(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    return _differs(inputs, _advantages(advantage, inputs), _advantages(advantage, inputs), "when asked again")


def _inputs_untouched(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    tensors = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    before = {name: value.clone() for name, value in tensors.items()}
    advantage.credit(inputs)
    changed = [name for name, value in tensors.items() if not torch.equal(value, before[name])]
    return f"{changed[0]} was changed in place; work on a copy" if changed else None


def _without_critic(advantage: Advantage) -> str | None:
    if advantage.needs_critic:
        return None
    inputs = _inputs(advantage)
    shifted = replace(inputs, values=inputs.values + 1)
    return _differs(
        inputs,
        _advantages(advantage, inputs),
        _advantages(advantage, shifted),
        "with other values, and needs_critic is false",
    )


def _token_rewards(advantage: Advantage) -> str | None:
    """Half of what row 0 gets at its last action is given at its first."""
    inputs = _inputs(advantage)
    rewards = inputs.rewards.clone()
    rewards[0] += rewards[2] / 2
    rewards[2] /= 2
    before, after = (_advantages(advantage, each) for each in (inputs, replace(inputs, rewards=rewards)))
    found = _differs(inputs, before, after, "when part of a row's reward is given earlier")
    if advantage.uses_token_rewards:
        return None if found else "it does not, and uses_token_rewards is true: rewards of tokens would be flattened"
    return f"{found}, and uses_token_rewards is false" if found else None


def _unscored(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    row_actions = take_rows(inputs.action_counts, torch.tensor([UNSCORED]))
    rewards = inputs.rewards.clone()
    rewards[row_actions] += 5
    others = torch.ones_like(rewards, dtype=torch.bool)
    others[row_actions] = False
    return _differs(
        inputs,
        _advantages(advantage, inputs),
        _advantages(advantage, replace(inputs, rewards=rewards)),
        f"when row {UNSCORED}, which has no score, gets more reward",
        where=others,
    )


def _every_process(advantage: Advantage) -> str | None:
    """The first four rows in one process, five in another: the second prompt is in both."""
    inputs = _inputs(advantage)
    whole = _advantages(advantage, inputs)
    for cut in (4, 1):
        try:
            parts = _spread(inputs, cut, lambda part: _advantages(advantage, part))
        except threading.BrokenBarrierError:
            return "with two processes one waits for the other: both must call gather_rows, groups and add_up alike"
        found = _differs(inputs, whole, torch.cat(parts), f"with {cut} rows in one process and the rest in another")
        if found:
            return f"{found}. Compare rows through inputs.groups or gather_rows, and sums through add_up"
    return None


def _own_prompt(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    rewards = inputs.rewards.clone()
    rewards[-1] += 3
    first = torch.arange(len(rewards)) < int(inputs.action_counts[:GROUP_SIZE].sum())
    changed = _advantages(advantage, replace(inputs, rewards=rewards))
    return _differs(
        inputs, _advantages(advantage, inputs), changed, "when another prompt's row gets more reward", where=first
    )


def _more_is_better(advantage: Advantage) -> str | None:
    inputs = _inputs(advantage)
    rewards = inputs.rewards.clone()
    last = int(inputs.action_counts[0]) - 1
    rewards[last] += 1
    before, after = (_advantages(advantage, each)[last] for each in (inputs, replace(inputs, rewards=rewards)))
    if after > before:
        return None
    return f"row 0 gets 1 more at its last action, whose advantage goes from {before:g} to {after:g}"


def _after_eos(advantage: Advantage) -> str | None:
    if not advantage.needs_critic:
        return None
    inputs = _inputs(advantage)
    later = replace(inputs, final_advantages=inputs.final_advantages + (torch.arange(len(LENGTHS)) == 0))
    same = torch.allclose(_advantages(advantage, inputs), _advantages(advantage, later), atol=CLOSE)
    return "with score_position = after_eos the score would be lost: use inputs.final_advantages" if same else None


def _advantages(advantage: Advantage, inputs: CreditInputs) -> Tensor:
    return advantage.credit(inputs).advantages


def _spread(inputs: CreditInputs, cut: int, ask: Callable[[CreditInputs], Tensor]) -> list[Tensor]:
    """What two processes answer, the first of which holds `cut` rows; threads stand for them."""
    meeting = threading.Barrier(2, timeout=WAIT_SECONDS)
    brought: list[Tensor] = [torch.empty(0), torch.empty(0)]

    def exchange(rank: int, values: Tensor, join: Callable[[list[Tensor]], Tensor]) -> Tensor:
        brought[rank] = values
        meeting.wait()
        result = join(list(brought))
        meeting.wait()
        return result

    def play(rank: int) -> Tensor:
        rows = torch.arange(cut) if rank == 0 else torch.arange(cut, len(inputs.action_counts))
        part = replace(
            _rows_of(inputs, rows),
            first_row=0 if rank == 0 else cut,
            gather_rows=lambda values: exchange(rank, values, torch.cat),
            add_up=lambda values: exchange(rank, values, lambda both: both[0] + both[1]),
        )
        return ask(part)

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(play, 0), pool.submit(play, 1)]]


def _rows_of(inputs: CreditInputs, rows: Tensor) -> CreditInputs:
    actions = take_rows(inputs.action_counts, rows)
    by_action = {name: vars(inputs)[name][actions] for name in ("rewards", "values", "turn_starts")}
    by_row = {
        field.name: vars(inputs)[field.name][rows]
        for field in fields(inputs)
        if isinstance(vars(inputs)[field.name], Tensor) and field.name not in by_action
    }
    parts = tuple(replace(part, values=part.values[rows]) for part in inputs.parts)
    return replace(inputs, **by_action, **by_row, parts=parts)


def _differs(inputs: CreditInputs, one: Tensor, other: Tensor, when: str, where: Tensor | None = None) -> str | None:
    if one.shape != other.shape:
        return f"{len(one)} advantages, but {len(other)} {when}"
    wrong = ~torch.isclose(one, other, rtol=CLOSE, atol=CLOSE)
    wrong = wrong if where is None else wrong & where
    places = wrong.nonzero()
    if not len(places):
        return None
    place = int(places[0])
    return f"an action of row {_row(inputs, wrong)} has advantage {one[place]:g}, but {other[place]:g} {when}"


def _row(inputs: CreditInputs, wrong: Tensor) -> int:
    return int(sum_by_row(wrong.long(), inputs.action_counts).nonzero()[0])


LAWS: tuple[Law[Advantage], ...] = (
    Law("protocol", "it has needs_critic and uses_token_rewards, both true or false, and credit(inputs)", _protocol),
    Law("one_value_each", "every action has a finite advantage, and a target where there is a critic", _one_value_each),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
    Law("repeatable", "the same inputs give the same advantages again", _repeatable),
    Law("without_critic", "without a critic, values do not matter", _without_critic),
    Law("token_rewards", "when a reward is given matters exactly where uses_token_rewards says so", _token_rewards),
    Law("unscored", "a row without a score changes nothing for the others", _unscored),
    Law("every_process", "it does not matter which process holds which rows", _every_process),
    Law("more_is_better", "a higher reward gives its action a higher advantage", _more_is_better, False),
    Law("own_prompt", "rows of other prompts do not matter", _own_prompt, False),
    Law("after_eos", "with a critic, a reward after the stop token counts", _after_eos, False),
)
