"""The laws of rewards."""

import copy
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearstep.common.errors import ConfigError, shorten
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.functions import FunctionReward, function_name
from nearstep.rewards.protocol import RewardSource, StartsEarly
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.values import read_values
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.types import Message

ROWS: tuple[Mapping[str, object], ...] = (
    {"prompt": "Name a colour.", "completion": "Blue."},
    {"prompt": "What is 2 + 2?", "completion": "2 + 2 = 4"},
    {"prompt": "Name a colour.", "completion": "A colour? I would say that green is one."},
)
# What a policy may well write: nothing, one character, other scripts, unclosed brackets, a great deal.
HARD_TEXTS = ("", " ", "\n\n", "7", "日本語のテキスト 🙂", "\\boxed{", "```python\nprint(", "NaN", "word " * 2000)
STOP_ID = 256


def check_reward(
    reward: object, *, rows: Sequence[Mapping[str, object]] = ROWS, skip: Sequence[str] = ()
) -> CheckResult:
    """Hold a reward function, or a RewardSource, to its laws. Raises ConformanceError with the first that is broken.

    `rows` are samples with a `prompt`, a `completion`, and every column that the reward reads; texts, or lists of chat
    messages. `own_row`, `repeatable` and `head_start` are not universal: a reward may compare the rows of a batch, or
    ask a model that answers differently each time. Raises ConfigError for rows without prompt or completion.
    """
    for number, row in enumerate(rows):
        missing = [name for name in ("prompt", "completion") if name not in row]
        if missing:
            raise ConfigError(f"row {number} of the samples has no {missing[0]}; its columns are {', '.join(row)}")
    if not rows:
        raise ConfigError("a reward is tried on samples: give at least one row")
    name = function_name(reward) if callable(reward) else type(reward).__name__
    return hold(f"reward {name}", Trial(reward, tuple(dict(row) for row in rows)), LAWS, skip)


@dataclass(frozen=True)
class Trial:
    """A reward and the rows that it is tried on."""

    reward: object
    rows: tuple[dict[str, object], ...]

    def source(self) -> RewardSource:
        """The reward as the training loop holds it. Raises RewardError where it cannot be called."""
        if isinstance(self.reward, RewardSource):
            return self.reward
        if not callable(self.reward):
            raise TypeError(f"{shorten(self.reward)} can neither be called nor has it name and score(batch)")
        function: Callable[..., Any] = self.reward
        return FunctionReward(function)

    def batch(self, rows: Sequence[dict[str, object]] | None = None) -> RewardBatch:
        """The rows as rewards see them, in memory of its own."""
        rows = copy.deepcopy(list(self.rows if rows is None else rows))
        columns = {name for row in rows for name in row} - {"prompt", "completion"}
        texts = [_text(row["completion"]) for row in rows]
        prompts: Any = [row["prompt"] for row in rows]
        completions: Any = [row["completion"] for row in rows]
        return RewardBatch(
            prompts=prompts,
            completions=completions,
            prompt_ids=[list(_text(row["prompt"]).encode()) for row in rows],
            completion_ids=[[*text.encode(), STOP_ID] for text in texts],
            finished=[True] * len(rows),
            columns={name: [row.get(name) for row in rows] for name in sorted(columns)},
            episodes=list(range(len(rows))),
        )

    def values(self, batch: RewardBatch) -> list[float]:
        """What the reward says, NaN where it says None. Raises RewardError for anything that is no reward."""
        return self.read(self.source().score(batch), batch)

    def read(self, returned: Answer | Awaitable[Answer], batch: RewardBatch) -> list[float]:
        """The values of an answer, as `values` gives them."""
        answer = returned if isinstance(returned, Answer) else EventLoop().gather([returned])[0]
        return read_values(answer.values, batch, self.source().name)


def _text(value: object) -> str:
    """A text, or the contents of chat messages one after another."""
    return " ".join(str(message.get("content")) for message in value) if isinstance(value, list) else str(value)


def _callable(trial: Trial) -> str | None:
    if not isinstance(trial.reward, RewardSource):
        function = trial.source()
        assert isinstance(function, FunctionReward)
        function.check(trial.batch().columns)
    return None


def _one_value_each(trial: Trial) -> str | None:
    trial.values(trial.batch())
    return None


def _any_completion(trial: Trial) -> str | None:
    for text in HARD_TEXTS:
        row = trial.rows[0]
        message: list[Message] = [{"role": "assistant", "content": text}]
        hard = {**row, "completion": message if isinstance(row["completion"], list) else text}
        trial.values(trial.batch([hard]))
    return None


def _unfinished(trial: Trial) -> str | None:
    cut = trial.batch()
    ids = [row[:-1] for row in cut.completion_ids]
    trial.values(replace(cut, completion_ids=ids, finished=[False] * len(cut)))
    return None


def _inputs_untouched(trial: Trial) -> str | None:
    given, before = trial.batch(), trial.batch()
    trial.values(given)
    changed = [name for name, value in vars(before).items() if vars(given)[name] != value]
    return f"it changed {changed[0]}, which other rewards and the record still need" if changed else None


def _own_row(trial: Trial) -> str | None:
    together = trial.values(trial.batch())
    alone = [trial.values(trial.batch([row]))[0] for row in trial.rows]
    backwards = trial.values(trial.batch(trial.rows[::-1]))[::-1]
    return _differs(trial, together, alone, "alone") or _differs(trial, together, backwards, "in reverse order")


def _repeatable(trial: Trial) -> str | None:
    first, again = (trial.values(trial.batch()) for _ in range(2))
    return _differs(trial, first, again, "when asked again")


def _head_start(trial: Trial) -> str | None:
    source = trial.source()
    if not isinstance(source, StartsEarly):
        return None
    batch = trial.batch()
    begun = source.begin_early(len(batch))
    for row in range(len(batch) - 1, 0, -1):  # in any order, and not all
        begun.add(batch.select([row]))
    values = trial.read(begun.score(batch), batch)
    return _differs(trial, trial.values(trial.batch()), values, "with a head start")


def _differs(trial: Trial, values: list[float], others: list[float], where: str) -> str | None:
    for row, one, two in zip(trial.rows, values, others, strict=True):
        if one != two and not (math.isnan(one) and math.isnan(two)):
            return f"completion {shorten(row['completion'])} gets {one:g}, and {two:g} {where}"
    return None


LAWS: tuple[Law[Trial], ...] = (
    Law("callable", "it is called with keywords and requires nothing that the samples do not give", _callable),
    Law("one_value_each", "it returns one finite number, or None, for each completion", _one_value_each),
    Law("any_completion", "it scores whatever a policy may write", _any_completion),
    Law("unfinished", "it scores completions that were cut off", _unfinished),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
    Law("own_row", "the reward of a completion does not depend on the others in the batch", _own_row, False),
    Law("repeatable", "the same completion gets the same reward again", _repeatable, False),
    Law(
        "head_start", "a source that scores early says the same of rows that were begun and others", _head_start, False
    ),
)
