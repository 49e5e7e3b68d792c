"""Functions written for TRL 1.16 carry over: what they are called with, how they are bound, how they fail."""

import asyncio
import functools
import threading

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward, function_name
from tests.rewards.episodes import play, scored
from tests.tiny import byte_tokenizer


def totals(*functions, completions=("a", "bb"), **columns):
    rewards = Rewards([FunctionReward(function) for function in functions], byte_tokenizer())
    return rewards(*play(list(completions), **columns)).total.tolist()


# --- What a function is given


def test_a_function_with_kwargs_is_given_everything_by_keyword(tokenizer):
    seen = {}

    def everything(**kwargs):
        seen.update(kwargs)
        return [0.0, 0.0]

    batch = scored(["a", "bb"], answer=[1, 2], prompt=["p", "q"], completion=["r", "s"], state="the state")
    FunctionReward(everything).score(batch)
    assert list(seen) == [
        "prompts", "completions", "completion_ids", "answer", "trainer_state", "log_extra", "log_metric"
    ]  # fmt: skip
    assert seen["prompts"] == ["Say: ", "Say: "]
    assert seen["completions"] == ["a", "bb"]
    assert seen["completion_ids"] == [[*tokenizer(text)["input_ids"], 256] for text in ["a", "bb"]]
    assert seen["answer"] == [1, 2]
    assert seen["trainer_state"] == "the state"


def test_conversations_arrive_as_messages():
    def first_words(prompts, completions, **kwargs):
        assert [prompt[-1]["content"] for prompt in prompts] == ["Hi", "Ho"]
        return [float(len(completion[0]["content"])) for completion in completions]

    chats = [[{"role": "user", "content": text}] for text in ["Hi", "Ho"]]
    rewards = Rewards([FunctionReward(first_words)], byte_tokenizer())
    assert rewards(*play(["a", "bb"], chats)).total.tolist() == [1.0, 2.0]


def matches_answer(completions, answer, **kwargs):
    return [1.0 if text == right else 0.0 for text, right in zip(completions, answer, strict=True)]


def length_only(completions):
    return [float(len(text)) for text in completions]


def with_default(completions, answer, scale=10.0):
    return [scale * (text == right) for text, right in zip(completions, answer, strict=True)]


def by_position_or_keyword(prompts, completions, completion_ids):
    return [float(len(ids)) for ids in completion_ids]


async def slowly(completions, **kwargs):
    await asyncio.sleep(0.001)
    return [float(len(text)) for text in completions]


class Counter:
    """An object that is called."""

    def __init__(self, letter="b"):
        self.letter = letter

    def __call__(self, completions, **kwargs):
        return [float(text.count(self.letter)) for text in completions]


class AsyncCounter(Counter):
    async def __call__(self, completions):
        return [float(text.count(self.letter)) for text in completions]

    def method(self, completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (matches_answer, [0.0, 1.0]),
        (length_only, [1.0, 2.0]),
        (with_default, [0.0, 10.0]),
        (by_position_or_keyword, [2.0, 3.0]),
        (slowly, [1.0, 2.0]),
        (Counter(), [0.0, 2.0]),
        (Counter("a"), [1.0, 0.0]),
        (AsyncCounter(), [0.0, 2.0]),
        (AsyncCounter().method, [0.0, 1.0]),
        (functools.partial(with_default, scale=3.0), [0.0, 3.0]),
        (functools.partial(slowly, extra=1), [1.0, 2.0]),
        (lambda completions, **_: [None if text == "a" else 5 for text in completions], [0.0, 5.0]),
        (lambda completions: slowly(completions), [1.0, 2.0]),
    ],
)
def test_functions_of_every_shape_carry_over(function, expected):
    always = length_only  # covers the rows to which a function does not apply
    alone = [total - length for total, length in zip(totals(function, always, answer=["b", "bb"]), [1, 2], strict=True)]
    assert alone == expected


def test_a_column_beats_the_default_of_a_parameter():
    assert totals(lambda completions, bonus=1.0: bonus, bonus=[3.0, 4.0]) == [3.0, 4.0]


def test_a_parameter_that_only_has_a_default_keeps_it():
    assert totals(lambda completions, bonus=(1.0, 2.0): bonus) == [1.0, 2.0]


def test_an_error_inside_the_function_is_never_taken_for_a_wrong_signature():
    calls = []

    def broken(completions, **kwargs):
        calls.append(kwargs)
        raise TypeError("unexpected keyword argument")

    with pytest.raises(RewardError, match="raised TypeError"):
        totals(broken)
    assert len(calls) == 1


# --- What it requires and does not get


def test_a_required_column_that_is_missing_is_named_with_those_that_exist():
    reward = FunctionReward(matches_answer)
    with pytest.raises(RewardError, match=r"'matches_answer' requires 'answer'.*handed over: solution, topic;"):
        reward.check(["topic", "solution"])
    with pytest.raises(RewardError, match="requires 'answer'"):
        reward.score(scored(["a"], solution=[1]))
    reward.check(["answer"])


def test_a_required_column_that_the_convention_keeps_back_is_said_to_be_there():
    with pytest.raises(RewardError, match=r"requires 'completion'.*rename it"):
        FunctionReward(lambda completions, completion: []).check(["completion"])


def test_a_column_called_like_an_argument_is_refused():
    with pytest.raises(RewardError, match="a column 'completions'"):
        FunctionReward(length_only).check(["completions"])


def test_a_function_that_cannot_be_called_with_keywords_is_refused():
    def by_position(completions, /):
        return []

    with pytest.raises(RewardError, match="'completions' by position only"):
        FunctionReward(by_position)
    with pytest.raises(RewardError, match="no readable signature"):
        FunctionReward({}.update)
    with pytest.raises(RewardError, match="is a class"):
        FunctionReward(Counter)


# --- How it fails


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_of_the_function_is_reported_with_its_name_place_rows_and_cause(asynchronous):
    def divides(completions):
        return [1 / 0 for _ in completions]

    async def divides_later(completions):
        return divides(completions)

    with pytest.raises(RewardError) as raised:
        totals(divides_later if asynchronous else divides)
    message = str(raised.value)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "'divides_later'" in message if asynchronous else "'divides'" in message
    assert "raised ZeroDivisionError: 'division by zero'" in message
    assert "test_functions.py, line" in message
    assert "rows 0 to 1 of the batch (episodes 100 to 101)" in message


def test_a_metric_that_is_no_number_points_at_the_line_that_logged_it():
    def logs(completions, log_metric):
        log_metric("mood", "good")

    with pytest.raises(RewardError, match=r"metric 'mood' must be a number, not 'good'.*test_functions.py"):
        totals(logs)


@pytest.mark.parametrize("function", [lambda **_: ["1", 1.0], lambda **_: asyncio.sleep(0, ["1", 1.0])])
def test_what_it_returns_is_checked_awaited_or_not(function):
    with pytest.raises(RewardError, match=r"'<lambda>' returned '1' for row 0"):
        totals(function)


# --- Asynchronous functions


def test_asynchronous_functions_of_a_batch_run_at_the_same_time():
    meeting = None

    async def one(completions):
        nonlocal meeting
        meeting = asyncio.Barrier(2)
        await asyncio.sleep(0)
        await meeting.wait()  # would wait forever for a function that has not begun
        return [1.0, 1.0]

    async def other(completions):
        await meeting.wait()
        return [2.0, 2.0]

    assert totals(one, length_only, other) == [4.0, 5.0]


def test_they_work_from_within_a_running_loop():
    async def notebook():
        return totals(slowly)

    assert asyncio.run(notebook()) == [1.0, 2.0]


def test_a_plain_function_may_run_a_loop_of_its_own():
    def plain(completions):
        return asyncio.run(slowly(completions))

    assert totals(plain, slowly) == [2.0, 4.0]


def test_what_a_function_keeps_open_between_batches_stays_usable():
    kept = None

    async def client(completions):
        nonlocal kept
        loop = asyncio.get_running_loop()
        kept = kept or loop.create_future()
        assert kept.get_loop() is loop
        return [0.0] * len(completions)

    rewards = Rewards([FunctionReward(client)], byte_tokenizer())
    for _ in range(2):
        assert rewards(*play(["a"])).total.tolist() == [0.0]


def test_one_that_fails_cancels_the_others():
    cancelled = threading.Event()

    async def waits(completions):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fails(completions):
        await asyncio.sleep(0)
        raise OSError("no connection")

    with pytest.raises(RewardError, match="'fails' raised OSError: 'no connection'"):
        totals(waits, fails)
    assert cancelled.wait(timeout=10)


def test_the_thread_of_the_loop_ends_with_the_rewards():
    rewards = Rewards([FunctionReward(slowly)], byte_tokenizer())
    before = set(threading.enumerate())
    rewards(*play(["a"]))
    (started,) = set(threading.enumerate()) - before
    del rewards
    started.join(timeout=10)
    assert not started.is_alive()


# --- Names


def test_names_are_those_of_the_function_or_the_class():
    named = Counter()
    named.__name__ = "count_b"
    assert function_name(length_only) == "length_only"
    assert function_name(functools.partial(with_default, scale=2.0)) == "with_default"
    assert function_name(Counter()) == "Counter"
    assert function_name(named) == "count_b"
    assert function_name(AsyncCounter().method) == "method"
    assert FunctionReward(length_only, "length").name == "length"


# --- What a function may check and prepare by itself


class Particular:
    """Knows more of what it needs than its signature says."""

    def __init__(self):
        self.checked = []

    def check_columns(self, columns):
        self.checked.append(list(columns))
        if "topic" not in columns:
            raise RewardError("no topic")

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)


def test_a_function_that_checks_columns_is_asked_once_before_the_run_not_with_every_batch():
    function = Particular()
    reward = FunctionReward(function)
    reward.check(["topic"])
    reward.score(scored(["a"]))
    assert function.checked == [["topic"]]
    with pytest.raises(RewardError, match="no topic"):
        reward.check(["answer"])
