"""The weighted sum: which parts count, how they are named, and what is refused."""

import pytest
import torch

from nearstep.common.errors import ConfigError, RewardError
from nearstep.rewards.batch import Answer
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from tests.rewards.episodes import play
from tests.tiny import byte_tokenizer


class Fixed:
    """A source that says what it was told to."""

    def __init__(self, *values, name="fixed"):
        self.name = name
        self.values = list(values)

    def score(self, batch):
        return Answer(self.values)


def rewards(*sources, **options):
    return Rewards(sources, byte_tokenizer(), **options)


def test_parts_add_up_with_their_weights():
    scorer = rewards(Fixed(1.0, 2.0, name="a"), Fixed(10.0, -20.0, name="b"), weights=[0.5, 2.0])
    scores = scorer(*play(["x", "y"]))
    assert scores.total.tolist() == [0.5 * 1 + 2 * 10, 0.5 * 2 + 2 * -20]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"a": [1.0, 2.0], "b": [10.0, -20.0]}
    assert scores.total.dtype == scores.parts["a"].dtype == torch.float32


def test_without_weights_each_part_weighs_one():
    assert rewards(Fixed(1.0, name="a"), Fixed(2.5, name="b"))(*play(["x"])).total.tolist() == [3.5]


def test_a_part_that_does_not_apply_leaves_the_sum_and_shows_as_nan():
    scorer = rewards(Fixed(None, 2.0, name="a"), Fixed(3.0, None, name="b"), weights=[5.0, 7.0])
    scores = scorer(*play(["x", "y"]))
    assert scores.total.tolist() == [21.0, 10.0]
    assert scores.parts["a"].isnan().tolist() == [True, False]
    assert scores.parts["b"].isnan().tolist() == [False, True]


def test_a_row_to_which_nothing_applies_is_an_error_naming_it():
    scorer = rewards(Fixed(1.0, None, name="a"), Fixed(None, None, name="b"))
    with pytest.raises(RewardError, match=r"row 1 of the batch \(episode 101\), completion 'y': a, b returned None"):
        scorer(*play(["x", "y"]))


@pytest.mark.parametrize("weight", [1e6, -1e6])
def test_a_sum_that_would_overflow_is_an_error_naming_the_row(weight):
    with pytest.raises(RewardError, match=r"1e\+15 for row 1"):
        rewards(Fixed(1.0, 1e9), weights=[weight])(*play(["x", "y"]))


def test_repeated_names_are_told_apart():
    scorer = rewards(Fixed(1.0, name="a"), Fixed(2.0, name="a"), Fixed(3.0, name="a_2"), Fixed(4.0, name="a"))
    parts = scorer(*play(["x"])).parts
    assert {name: part.item() for name, part in parts.items()} == {"a": 1.0, "a_2": 2.0, "a_2_2": 3.0, "a_3": 4.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"1 reward weight\(s\) for 2 reward\(s\) \(a, b\)"),
        ([1.0, 2.0, 3.0], r"3 reward weight\(s\) for 2 reward\(s\)"),
        ([], r"0 reward weight\(s\) for 2 reward\(s\)"),
        ([1.0, float("nan")], "the weight of reward 'b' is nan"),
    ],
)
def test_wrong_weights_are_refused_and_never_replaced(weights, message):
    with pytest.raises(ConfigError, match=message):
        rewards(Fixed(1.0, name="a"), Fixed(1.0, name="b"), weights=weights)


def test_no_reward_at_all_is_refused():
    with pytest.raises(ConfigError, match="there is no reward"):
        rewards()


def test_what_functions_log_comes_out_by_name():
    def first(completions, log_extra, log_metric):
        log_extra("length", [len(text) for text in completions])
        log_metric("seen", 1)
        return [0.0] * len(completions)

    def second(completions, log_extra, log_metric, **_):
        for text in completions:
            log_extra("length", [text.upper()])
        log_metric("seen", torch.tensor(4.0))
        log_metric("alone", True)
        return [1.0] * len(completions)

    scores = rewards(FunctionReward(first), FunctionReward(second))(*play(["x", "yy"]))
    assert scores.extras == {"length": [1, 2], "length_2": ["X", "YY"]}
    assert scores.metrics.numbers() == {"seen": 2.5, "alone": 1.0}
    other = rewards(FunctionReward(first))(*play(["z"]))  # of another process, which called it once
    assert (scores.metrics + other.metrics).numbers() == {"seen": 2.0, "alone": 1.0}


def test_nothing_logged_is_carried_into_the_next_batch():
    def logs(completions, log_extra, log_metric):
        log_extra("text", completions)
        log_metric("rows", len(completions))
        return [0.0] * len(completions)

    scorer = rewards(FunctionReward(logs))
    scorer(*play(["x", "y"]))
    scores = scorer(*play(["z"]))
    assert (scores.extras, scores.metrics.numbers()) == ({"text": ["z"]}, {"rows": 1.0})


def test_an_extra_column_of_the_wrong_length_is_an_error_naming_it():
    def logs(completions, log_extra):
        log_extra("text", completions[:1])
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="'logs' logged 1 values as extra column 'text' for 2 completions"):
        rewards(FunctionReward(logs))(*play(["x", "y"]))


def test_functions_see_the_state_of_the_trainer_at_the_time_of_the_call():
    def step(completions, trainer_state):
        return [float(trainer_state)] * len(completions)

    updates = iter([7, 8])
    scorer = rewards(FunctionReward(step), state=lambda: next(updates))
    assert [scorer(*play(["x"])).total.item() for _ in range(2)] == [7.0, 8.0]
