"""The laws of rewards and of critic schedules: ours keep them, and broken ones are caught."""

import itertools
from dataclasses import dataclass, replace

import pytest

from nearstep import ConfigError
from nearstep.common.errors import ConformanceError
from nearstep.rewards.batch import Answer
from nearstep.testing import check_critic_schedule, check_reward, rewards, schedules
from nearstep.training.schedules import Decoupled, Joint, Phase, PolicyOnly, RatioBand, WarmUp


def brevity(completions, **columns):
    return [-len(text) / 100 for text in completions]


async def slowly(completions, **columns):
    return [float("blue" in text.lower()) for text in completions]


def only_questions(prompts, completions):
    return [1.0 if prompt.endswith("?") else None for prompt in prompts]


def right_answer(completions, answer):
    return [float(truth in text) for text, truth in zip(completions, answer, strict=True)]


def polite(completions, **columns):
    return [float("please" in messages[-1]["content"]) for messages in completions]


class Source:
    name = "source"

    def score(self, batch):
        return Answer([float(len(ids)) for ids in batch.completion_ids])


class EarlySource(Source):
    """Judges rows as they come; `forgets` what it has been told of."""

    def __init__(self, forgets=False):
        self.forgets = forgets

    def begin_early(self, rows):
        return EarlyValues(self, self.forgets)


class EarlyValues:
    def __init__(self, source, forgets):
        self.source, self.forgets, self.begun = source, forgets, {}

    def add(self, row):
        (self.begun[row.number(0)],) = self.source.score(row).values

    def cancel(self):
        self.begun.clear()

    def score(self, batch):
        values = self.source.score(batch).values
        return Answer([0.0 if self.forgets and row in self.begun else value for row, value in enumerate(values)])


@pytest.mark.parametrize("reward", [brevity, slowly, only_questions, Source(), EarlySource()])
def test_rewards_of_every_kind_keep_the_laws(reward):
    assert [law for law, _ in check_reward(reward).held] == [law.name for law in rewards.LAWS]


def test_rows_give_the_columns_that_a_reward_reads():
    rows = [{"prompt": "2 + 2?", "completion": "It is 4.", "answer": "4"}]
    check_reward(right_answer, rows=rows)
    with pytest.raises(ConformanceError, match=r"'callable'(.|\n)*requires 'answer'"):
        check_reward(right_answer)


def test_chats_are_scored_as_chats():
    chat = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Yes please"}],
    }
    check_reward(polite, rows=[chat])


@pytest.mark.parametrize(("rows", "said"), [([{"prompt": "a"}], "no completion"), ([], "at least one row")])
def test_samples_need_prompt_and_completion(rows, said):
    with pytest.raises(ConfigError, match=said):
        check_reward(brevity, rows=rows)


def one_too_few(completions, **columns):
    return [0.0] * (len(completions) - 1)


def not_finite(completions, **columns):
    return [1 / len(text) if text else float("nan") for text in completions]


def no_empty_answer(completions, **columns):
    return [float(text.split()[0] == "Blue.") for text in completions]


def needs_the_stop_token(completion_ids, **columns):
    return [float(ids.index(256)) for ids in completion_ids]


def tidies_up(completions, **columns):
    completions[:] = [text.strip().lower() for text in completions]
    completions.append("")
    return [0.0] * (len(completions) - 1)


def against_the_others(completions, **columns):
    mean = sum(map(len, completions)) / len(completions)
    return [len(text) - mean for text in completions]


COUNTER = itertools.count()


def moody(completions, **columns):
    return [float(next(COUNTER) // 10_000_000 + (len(completions) > 1) * next(COUNTER)) for _ in completions]


def requires_more(completions, mood):
    return [0.0] * len(completions)


BROKEN_REWARDS = {
    "callable": requires_more,
    "one_value_each": one_too_few,
    "any_completion": no_empty_answer,
    "unfinished": needs_the_stop_token,
    "inputs_untouched": tidies_up,
    "own_row": against_the_others,
    "head_start": EarlySource(forgets=True),
}


@pytest.mark.parametrize(("law", "reward"), BROKEN_REWARDS.items(), ids=BROKEN_REWARDS)
def test_a_broken_reward_is_caught_at_its_law(law, reward):
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_reward(reward)


def test_a_reward_that_is_not_finite_is_caught():
    with pytest.raises(ConformanceError, match=r"'any_completion'(.|\n)*must be finite"):
        check_reward(not_finite)


def test_a_reward_may_compare_rows_but_that_is_said():
    assert check_reward(against_the_others, skip=("own_row",)).skipped == ("own_row",)


def test_a_reward_that_changes_its_mind_is_caught():
    with pytest.raises(ConformanceError, match="'repeatable'"):
        check_reward(moody, skip=("own_row",))
    check_reward(moody, skip=("own_row", "repeatable"))


@pytest.mark.parametrize("reward", [3, "file.py:name", type("Class", (), {})])
def test_what_cannot_be_called_is_no_reward(reward):
    with pytest.raises(ConformanceError, match="'callable'"):
        check_reward(reward)


@pytest.mark.parametrize(
    "schedule",
    [
        PolicyOnly(2),
        Joint(4),
        Decoupled(4, 1, 3, 100),
        WarmUp(Joint(2), 5, 1),
        Decoupled(4, 1, 3, 100, RatioBand()),
        WarmUp(Decoupled(1, 2, 7, 100), 5, 1),
    ],
    ids=repr,
)
def test_our_schedules_keep_every_law(schedule):
    assert [law for law, _ in check_critic_schedule(schedule).held] == [law.name for law in schedules.LAWS]


@dataclass
class Changed:
    """Joint training, with an edit of each phase."""

    edit: object

    def phases(self, update):
        return self.edit(update, Phase(update, 2, policy=True, critic=True))


class Alternating:
    """Depends on how often it was asked, not on the update."""

    def __init__(self):
        self.calls = 0

    def phases(self, update):
        self.calls += 1
        return [Phase(update, 1 + self.calls % 3, policy=True, critic=True)]


BROKEN_SCHEDULES = {
    "protocol": object(),
    "lists_phases": Changed(lambda update, phase: phase),
    "own_update": Changed(lambda update, phase: [replace(phase, update=update - 1)]),
    "work": Changed(lambda update, phase: [replace(phase, epochs=0)]),
    "reweighted": Changed(lambda update, phase: [phase, replace(phase, reweight=RatioBand())]),
    "repeatable": Alternating(),
    "policy_trains": Changed(lambda update, phase: [replace(phase, policy=False)]),
    "last_update": Decoupled(4, 1, 3, last_update=120),
}


@pytest.mark.parametrize(("law", "schedule"), BROKEN_SCHEDULES.items(), ids=BROKEN_SCHEDULES)
def test_a_broken_schedule_is_caught_at_its_law(law, schedule):
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_critic_schedule(schedule)


@pytest.mark.parametrize(("before", "reweight", "said"), [
    ([], RatioBand(), "after a phase of the policy in the same update"),
    ([Phase(1, 1, policy=True, critic=False)], RatioBand(2.0, 6.0), "low is at most 1 and high at least 1"),
    ([Phase(1, 1, policy=True, critic=False)], 6.0, "reweight is 6.0; it is a RatioBand, or None"),
])  # fmt: skip
def test_what_is_wrong_with_a_reweighted_phase_is_said(before, reweight, said):
    phases = [*before, Phase(1, 1, policy=False, critic=True)]
    vars(phases[-1])["reweight"] = reweight  # as it may come from code without types
    assert said in schedules.reweighting_problem(phases)


def test_the_length_of_the_run_counts():
    check_critic_schedule(Decoupled(4, 1, 7, last_update=10), updates=10)
    with pytest.raises(ConformanceError, match="'last_update'"):
        check_critic_schedule(Decoupled(4, 1, 7, last_update=10), updates=12)


def test_all_laws_are_broken_by_one():
    assert [*list(BROKEN_REWARDS)[:-1], "repeatable", "head_start"] == [law.name for law in rewards.LAWS]
    assert list(BROKEN_SCHEDULES) == [law.name for law in schedules.LAWS]
