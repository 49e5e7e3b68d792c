"""Credit by turn: a row of three turns by hand, GAE where each turn is one token, turns that say nothing twice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.advantage_rules import GAE, CreditInputs
from nearstep.algorithm.ragged import places_in_row, run_lengths, turn_starts
from nearstep.algorithm.turn_rules import TurnGAE, turn_gae

# Turns of 2, 1 and 3 tokens. Values of the states before their first tokens: 0.1, 0.4, 0.2.
REWARDS = [-0.01, 0.5, -0.02, 0.0, -0.03, 1.0]
VALUES = [0.1, 9.0, 0.4, 0.2, 8.0, 7.0]
STARTS = [True, False, True, True, False, False]
# Turns earn 0.49, -0.02, 0.97. With γ ½ and λ ½:
THIRD = 0.97 - 0.2
SECOND = -0.02 + 0.5 * 0.2 - 0.4 + 0.25 * THIRD
FIRST = 0.49 + 0.5 * 0.4 - 0.1 + 0.25 * SECOND
ADVANTAGES = [FIRST, FIRST, SECOND, THIRD, THIRD, THIRD]
# What is still to come when a token is next: the turn's return less what its tokens have earned.
TARGETS = [FIRST + 0.1, FIRST + 0.1 + 0.01, SECOND + 0.4, THIRD + 0.2, THIRD + 0.2, THIRD + 0.2 + 0.03]


def inputs_of(rewards=REWARDS, values=VALUES, counts=(6,), starts=STARTS, **changes):
    rows = len(counts)
    given = {
        "final_values": torch.zeros(rows, dtype=torch.float64),
        "final_advantages": torch.zeros(rows, dtype=torch.float64),
    }
    return CreditInputs(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        values=torch.tensor(values, dtype=torch.float64),
        action_counts=torch.tensor(counts),
        scored=torch.ones(rows, dtype=torch.bool),
        update=1,
        response_length=9,
        turn_starts=None if starts is None else torch.tensor(starts),
        **{**given, **changes},
    )


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_row_of_three_turns_by_hand():
    credit = TurnGAE(gamma=0.5, lam=0.5).credit(inputs_of())
    close(credit.advantages, ADVANTAGES)
    close(credit.targets, TARGETS)


def test_what_follows_the_row_stands_behind_its_last_turn():
    later = {
        "final_values": torch.tensor([0.6], dtype=torch.float64),
        "final_advantages": torch.tensor([0.3], dtype=torch.float64),
    }
    credit = TurnGAE(gamma=0.5, lam=0.5).credit(inputs_of(**later))
    more = 0.5 * 0.6 + 0.25 * 0.3
    close(credit.advantages[3:], [THIRD + more] * 3)
    close(credit.advantages[2], SECOND + 0.25 * more)


def test_the_critic_may_have_a_lambda_of_its_own_and_another_while_it_warms_up():
    rule = TurnGAE(gamma=1.0, lam=0.0, lam_critic=1.0, warmup_updates=1, warmup_lam=0.0)
    warm = rule.credit(inputs_of())
    late = TurnGAE(gamma=1.0, lam=0.0, lam_critic=1.0).credit(inputs_of())
    close(late.advantages[:2], [0.49 + 0.4 - 0.1] * 2)
    close(late.targets[0], 0.49 - 0.02 + 0.97)
    close(warm.targets[0], 0.49 + 0.4)
    close(rule.credit(replace(inputs_of(), critic_is_ready=True)).targets, late.targets)  # it has ended early


def test_without_borders_each_row_is_one_turn():
    credit = TurnGAE(gamma=0.5, lam=0.5).credit(inputs_of(counts=(2, 4), starts=None))
    close(credit.advantages, [0.49 - 0.1] * 2 + [0.95 - 0.4] * 4)


def test_values_within_a_turn_do_not_matter():
    other = [value if begins else -value for value, begins in zip(VALUES, STARTS, strict=True)]
    one, two = (TurnGAE().credit(inputs_of(values=values)) for values in (VALUES, other))
    close(one.advantages, two.advantages)
    close(one.targets, two.targets)


numbers = st.floats(-2, 2)
rows = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=4)


@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_where_each_turn_is_one_token_it_is_gae(actions, gamma, lam):
    pairs = [pair for row in actions for pair in row]
    inputs = inputs_of(
        [reward for reward, _ in pairs], [value for _, value in pairs], tuple(map(len, actions)), [True] * len(pairs)
    )
    by_turn, by_token = TurnGAE(gamma, lam).credit(inputs), GAE(gamma, lam).credit(inputs)
    close(by_turn.advantages, by_token.advantages)
    close(by_turn.targets, by_token.targets)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_turn_begins_a_row_or_stands_behind_what_was_heard(flags):
    is_action, lengths = torch.tensor([each for row in flags for each in row]), torch.tensor(list(map(len, flags)))
    expected = [place == 0 or not row[place - 1] for row in flags for place, chosen in enumerate(row) if chosen]
    found = turn_starts(is_action, lengths)
    assert found.tolist() == expected
    if len(found):
        assert run_lengths(found).tolist() == [
            len(group) for group in "".join("|." if each else "." for each in expected).split("|")[1:]
        ]


def test_the_sum_along_turns_is_that_along_tokens_without_discount():
    """λ and γ of 1: a row's first advantage is its return less its first value, however it is cut into turns."""
    inputs = inputs_of()
    ends = {"final_values": inputs.final_values, "final_advantages": inputs.final_advantages, "gamma": 1.0, "lam": 1.0}
    for starts in (inputs.turn_starts, places_in_row(inputs.action_counts) == 0, torch.ones(6, dtype=torch.bool)):
        found = turn_gae(inputs.rewards, inputs.values, inputs.action_counts, starts, **ends)
        assert found[0].item() == pytest.approx(sum(REWARDS) - 0.1)
