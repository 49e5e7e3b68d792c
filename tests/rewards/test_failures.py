"""R21: a reward that fails ends the run, is asked again, or costs the rows that fail, counted; no 0 is made up."""

import asyncio
import math

import pytest
import torch

from nearstep.common.errors import RewardError
from nearstep.rewards.ask import OnError
from nearstep.rewards.batch import Answer
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from tests.rewards.episodes import play
from tests.tiny import byte_tokenizer

ROWS = [f"row {number}" for number in range(10)]
LENGTHS = [float(len(text)) for text in ROWS]


class Flaky:
    """Worth its length; fails on some texts, the first `times` times that it is asked about them."""

    def __init__(self, bad, *, times=math.inf, how="raise"):
        self.bad, self.how, self.calls = dict.fromkeys(bad, times), how, []

    def __call__(self, completions):
        self.calls.append(list(completions))
        failing = [text for text in completions if self.bad.get(text, 0) > 0]
        for text in failing:
            self.bad[text] -= 1
        if failing and self.how == "raise":
            raise ValueError(f"cannot score {failing[0]}")
        if failing and self.how == "leave":
            raise SystemExit("gone")
        if failing and self.how == "short":
            return [1.0] * (len(completions) - 1)
        return [self.how if text in failing else float(len(text)) for text in completions]


class AsyncFlaky(Flaky):
    async def __call__(self, completions):
        await asyncio.sleep(0)
        return Flaky.__call__(self, completions)


def score(*functions, policy, retries=2, rows=ROWS):
    rewards = Rewards(
        [FunctionReward(function, name) for name, function in zip("ab", functions, strict=False)],
        byte_tokenizer(),
        on_error=OnError(policy, retries),
    )
    return rewards(*play(rows))


WHOLE = ["raise", "leave", "short"]  # says nothing of which row is to blame
SINGLE = [math.nan, math.inf, "1", 2j]


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky])
@pytest.mark.parametrize("bad", [1, 6, 10])
@pytest.mark.parametrize("how", [*WHOLE, *SINGLE], ids=str)
def test_raise_ends_the_run_at_the_first_call(kind, bad, how):
    function = kind(ROWS[:bad], how=how)
    with pytest.raises(RewardError, match="'a'"):
        score(function, policy="raise")
    assert len(function.calls) == 1


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky])
@pytest.mark.parametrize("bad", [1, 5])
def test_drop_costs_the_rows_that_fail_alone_and_no_other(kind, bad):
    for how in WHOLE:
        function = kind(ROWS[:bad], how=how)
        scores = score(function, policy="drop")
        assert scores.total.isnan().tolist() == [True] * bad + [False] * (10 - bad)
        assert scores.total[bad:].tolist() == LENGTHS[bad:]
        assert function.calls == [ROWS, *([row] for row in ROWS)]  # asked again, row by row
        assert scores.metrics.numbers() == {"reward/a_failed": 1.0}  # every row was asked about again
        assert set(scores.failures["a"]) == set(range(bad))


@pytest.mark.parametrize("how", SINGLE, ids=str)
def test_a_value_that_is_no_number_names_its_row_so_nothing_is_asked_again(how):
    function = Flaky([ROWS[3]], how=how)
    scores = score(function, policy="drop")
    assert scores.total.isnan().nonzero().tolist() == [[3]]
    assert function.calls == [ROWS]
    assert "row 3 of the batch (episode 103)" in scores.failures["a"][3]
    assert scores.metrics.numbers() == {"reward/a_failed": 0.1}


@pytest.mark.parametrize("bad", [6, 10])
@pytest.mark.parametrize("how", ["raise", math.nan], ids=str)
def test_over_half_of_the_rows_ends_the_run_even_so(bad, how):
    with pytest.raises(RewardError, match=rf"{bad} of 10 rows have no reward.*'a' failed on {bad} of them, first so: "):
        score(Flaky(ROWS[:bad], how=how), policy="drop")


def test_rows_lost_to_different_rewards_add_up():
    scores = score(Flaky(ROWS[:2], how=math.nan), Flaky(ROWS[1:5], how=math.nan), policy="drop")
    assert scores.total.isnan().tolist() == [True] * 5 + [False] * 5
    assert scores.metrics.numbers() == {"reward/a_failed": 0.2, "reward/b_failed": 0.4}
    assert scores.parts["a"].isnan().tolist() == [True] * 2 + [False] * 8
    with pytest.raises(RewardError, match="6 of 10 rows"):
        score(Flaky(ROWS[:3], how=math.nan), Flaky(ROWS[3:6], how=math.nan), policy="drop")


def test_a_row_to_which_nothing_applies_is_dropped_too():
    scores = score(lambda completions: [None, 2.0], policy="drop", rows=["x", "y"])
    assert scores.total.isnan().tolist() == [True, False]
    assert scores.metrics.numbers() == {"reward/a_failed": 0.0}  # it did not fail


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky])
def test_retry_asks_again_about_what_failed_until_it_is_well(kind):
    function = kind(ROWS[2:4], times=2, how=math.nan)
    scores = score(function, policy="retry")
    assert scores.total.tolist() == LENGTHS
    assert function.calls == [ROWS, ROWS[2:4], ROWS[2:4]]
    assert scores.metrics.numbers() == {"reward/a_failed": 0.2}
    assert scores.failures == {}


def test_retry_asks_a_function_that_failed_as_a_whole_about_the_whole():
    function = Flaky(ROWS[:1], times=1)
    assert score(function, policy="retry").total.tolist() == LENGTHS
    assert function.calls == [ROWS, ROWS]


@pytest.mark.parametrize(("retries", "calls"), [(1, 2), (2, 3), (5, 6)])
@pytest.mark.parametrize("how", ["raise", math.nan], ids=str)
def test_retry_gives_up_after_the_number_that_was_asked_for(retries, calls, how):
    function = Flaky(ROWS[:1], how=how)
    with pytest.raises(RewardError, match=f"It was asked {calls} times"):
        score(function, policy="retry", retries=retries)
    assert len(function.calls) == calls


def test_one_that_fails_does_not_take_the_others_along():
    """Under raise the first error cancels the rest; elsewhere they go on."""
    done = []

    async def slow(completions):
        await asyncio.sleep(0.05)
        done.append(len(completions))
        return [1.0] * len(completions)

    scores = score(AsyncFlaky(ROWS[:1]), slow, policy="drop")
    assert done == [10]
    assert scores.parts["b"].tolist() == [1.0] * 10


def test_what_was_logged_keeps_its_rows_when_a_function_is_asked_row_by_row():
    def logs(completions, log_extra, log_metric):
        if completions[0] == ROWS[2] or len(completions) > 1:
            raise ValueError("no")
        log_extra("text", [text.upper() for text in completions])
        log_metric("seen", len(completions))
        return [0.0] * len(completions)

    scores = score(logs, policy="drop")
    assert scores.extras == {"text": [text.upper() if text != ROWS[2] else None for text in ROWS]}
    assert scores.metrics.numbers() == {"seen": 1.0, "reward/a_failed": 1.0}


def test_an_error_of_a_source_is_the_cause_of_what_is_raised():
    with pytest.raises(RewardError) as raised:
        score(Flaky(ROWS), policy="drop")
    assert isinstance(raised.value.__cause__, RewardError)
    assert isinstance(raised.value.__cause__.__cause__, ValueError)


def test_a_source_may_say_itself_which_rows_failed():
    class PerRow:
        name = "rows"

        def score(self, batch):
            return Answer([RewardError(f"lost {batch.place(0)}"), 2.0])

    rewards = Rewards([PerRow()], byte_tokenizer(), on_error=OnError("drop"))
    scores = rewards(*play(["x", "y"]))
    assert scores.total[0].isnan()
    assert scores.total[1] == 2
    assert scores.failures == {"rows": {0: "lost row 0 of the batch (episode 100)"}}
    with pytest.raises(RewardError, match="lost row 0"):
        Rewards([PerRow()], byte_tokenizer())(*play(["x", "y"]))


def test_the_interrupt_of_the_user_is_no_failure():
    def interrupted(completions):
        raise KeyboardInterrupt

    for policy in ("raise", "retry", "drop"):
        with pytest.raises(KeyboardInterrupt):
            score(interrupted, policy=policy)


def test_a_single_row_that_fails_as_a_whole_is_not_asked_twice():
    function = Flaky(["x"])
    with pytest.raises(RewardError, match="1 of 1 rows"):
        score(function, policy="drop", rows=["x"])
    assert len(function.calls) == 1


def test_a_dropped_row_has_no_score_at_all():
    scores = score(Flaky(ROWS[:1], how=math.nan), policy="drop")
    assert torch.isnan(scores.total[0])
    assert scores.scored.tolist() == [False] + [True] * 9
