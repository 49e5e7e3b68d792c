"""What an engine recorded is checked before it is trained on: one broken engine for every way to be wrong."""

from copy import copy
from dataclasses import dataclass, replace

import pytest
import torch

from nearstep.common.errors import ConfigError, TrainingError
from nearstep.models.distribution import Sampling
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import (
    Capabilities,
    EngineSettings,
    GenerationSettings,
    looks_unrecorded,
    play,
    rollout_of_rows,
)
from nearstep.types import Prompts, TopLogprobs

PROMPTS = Prompts(ids=[[5, 6], [8], [9, 9, 9]], inputs=["", "", ""], columns={}, episodes=[10, 11, 12])
SETTINGS = GenerationSettings(Sampling(0.7), response_length=4, stop_ids=(2,), seed=0)
RESPONSES = [[7, 2], [2], [7, 7, 7, 7]]
LOGPROBS = [[-1.0, -2.0], [-3.0], [-4.0, -5.0, -6.0, 0.0]]
# tokens 5 6|7 2, 8|2, 9 9 9|7 7 7 7; actions at 2 3, 5, 9 10 11 12
GOOD = rollout_of_rows(PROMPTS, RESPONSES, [torch.tensor(row) for row in LOGPROBS], [True, True, False], version=3)
TOP = TopLogprobs(
    ids=torch.stack([GOOD.actions, torch.full((7,), 30)], dim=1),
    logprobs=torch.stack([GOOD.logprobs, torch.full((7,), -torch.inf)], dim=1),  # as top_k leaves it
)


@dataclass
class Recorded:
    """An engine that records what it is told to."""

    found: object

    def capabilities(self):
        return Capabilities(top_tokens=True, limits=True)

    def load(self, weights, number):
        pass

    def generate(self, prompts, settings, row_ended=None):
        return self.found

    def close(self):
        pass


def at(values, place, value):
    """A copy of `values` with one entry changed."""
    changed = values.clone()
    changed[place] = value
    return changed


def edited(record, **changes):
    """A copy with other fields, past the shape checks that the tests switch on: users have none."""
    changed = copy(record)
    vars(changed).update(changes)
    return changed


def with_logprob(action, value):
    return edited(GOOD, logprobs=at(GOOD.logprobs, action, value))


def of_rows(responses, prompts=PROMPTS):
    logprobs = [torch.full((len(row),), -1.0) for row in responses]
    return rollout_of_rows(prompts, responses, logprobs, [True] * len(prompts), version=3)


def test_what_is_right_passes_as_it_is():
    assert play(Recorded(GOOD), PROMPTS, SETTINGS, version=3) is GOOD
    assert play(Recorded(GOOD), PROMPTS, SETTINGS, version=9) is GOOD  # older weights may have sampled
    rounded = with_logprob(0, 9e-5)
    assert play(Recorded(rounded), PROMPTS, SETTINGS, version=3) is rounded
    with_top = edited(GOOD, top=TOP)
    assert play(Recorded(with_top), PROMPTS, replace(SETTINGS, top_tokens=2)) is with_top


@pytest.mark.parametrize(("found", "words"), [
    pytest.param(None, "generate returned None; return a nearstep.types.Rollout", id="nothing"),
    pytest.param(edited(GOOD, logprobs=[0.0]), r"logprobs is \[0.0\]; record a tensor", id="list"),
    pytest.param(edited(GOOD, logprobs=GOOD.logprobs.half()), "logprobs is torch.float16 of shape", id="half"),
    pytest.param(edited(GOOD, logprobs=GOOD.logprobs[None]), r"shape \[1, 7\]; record one dimension", id="batched"),
    pytest.param(edited(GOOD, is_action=GOOD.is_action.long()), "is_action is torch.int64", id="mask"),
    pytest.param(edited(GOOD, finished=GOOD.finished.to("meta")), "several devices, .*'finished': 'meta'",
                 id="device"),
    pytest.param(GOOD.select(torch.tensor([0, 1])), "row_lengths has 2 rows for 3 prompts", id="row missing"),
    pytest.param(edited(GOOD, finished=GOOD.finished[:2]), "finished has 2 rows for 3 prompts", id="finished"),
    pytest.param(edited(GOOD, row_lengths=torch.tensor([6, 0, 7])), r"row 1 \(episode 11\) has a length of 0",
                 id="empty"),
    pytest.param(edited(GOOD, row_lengths=torch.tensor([4, 2, 8])), "tokens has 13 entries, and row_lengths sum to 14",
                 id="lengths"),
    pytest.param(edited(GOOD, is_action=GOOD.is_action[1:]), "is_action has 12 entries", id="mask short"),
    pytest.param(edited(GOOD, logprobs=GOOD.logprobs[:-1]), "logprobs has 6 entries, and 7 tokens are actions",
                 id="log-prob missing"),
    pytest.param(edited(GOOD, logprobs=GOOD.logprobs.repeat(2)), "logprobs has 14 entries", id="log-probs twice"),
    pytest.param(edited(GOOD, tokens=at(GOOD.tokens, 7, 1)),
                 r"row 2 \(episode 12\) begins with \[9, 1, 9\], and its prompt is \[9, 9, 9\]", id="another prompt"),
    pytest.param(GOOD.select(torch.tensor([0, 2, 1])), r"row 1 \(episode 11\) begins with \[9\].* is \[8\]",
                 id="order"),
    pytest.param(edited(GOOD, is_action=at(at(GOOD.is_action, 1, True), 2, False)),
                 "row 0 .* none of them as an action", id="prompt as action"),
    pytest.param(edited(GOOD, row_lengths=torch.tensor([4, 7, 2])), r"row 2 \(episode 12\) begins with", id="shorter"),
    pytest.param(of_rows([[7], [2], [7] * 5]), r"row 2 \(episode 12\) has 5 actions; record at least 1 and at most 4",
                 id="too long"),
    pytest.param(of_rows([[7], [], [7]]), r"row 1 \(episode 11\) has 0 actions", id="no action"),
    pytest.param(edited(GOOD, is_action=at(GOOD.is_action, 9, False), logprobs=GOOD.logprobs[1:]),
                 r"row 2 \(episode 12\) has a token after its prompt that is no action", id="gap"),
    pytest.param(edited(GOOD, policy_version=torch.tensor([3, 4, 2])),
                 r"row 1 \(episode 11\) is of policy version 4, and 3 was loaded last", id="version"),
    pytest.param(with_logprob(6, 2e-4), r"a log-prob of 0.0002 at token 4 of the response to row 2 \(episode 12",
                 id="positive"),
    pytest.param(with_logprob(2, torch.nan), r"a log-prob of nan at token 1 .* row 1 \(episode 11, policy version 3\)",
                 id="nan"),
    pytest.param(with_logprob(1, -torch.inf), "a log-prob of -inf at token 2 of the response to row 0",
                 id="impossible"),
])  # fmt: skip
def test_a_broken_record_is_refused_with_engine_row_and_what_is_wanted(found, words):
    with pytest.raises(TrainingError, match=f"^engine Recorded.*{words}"):
        play(Recorded(found), PROMPTS, SETTINGS, version=3)


def test_the_limit_of_a_row_binds_in_place_of_response_length():
    with pytest.raises(TrainingError, match=r"row 0 \(episode 10\) has 2 actions; record at least 1 and at most 1 "):
        play(Recorded(GOOD), PROMPTS, replace(SETTINGS, limits=(1, 4, 4)))
    assert play(Recorded(GOOD), PROMPTS, replace(SETTINGS, response_length=1, limits=(2, 1, 4))) is GOOD


@pytest.mark.parametrize(("top", "words"), [
    (None, "recorded as None, and its capabilities"),
    (edited(TOP, ids=TOP.ids[:, :1], logprobs=TOP.logprobs[:, :1]), r"shape \[7, 1\].* 2 tokens at each of 7 actions"),
    (edited(TOP, ids=at(TOP.ids, (3, 0), 31)), r"\[31, 30\] .* token 1 of the response to row 2 .* sampled token 7"),
    (edited(TOP, logprobs=at(TOP.logprobs, (1, 1), torch.nan)), r"\[-2.0, nan\] were recorded at token 2 .* row 0"),
])  # fmt: skip
def test_top_tokens_that_were_asked_for_are_there(top, words):
    with pytest.raises(TrainingError, match=f"engine Recorded: .*{words}"):
        play(Recorded(edited(GOOD, top=top)), PROMPTS, replace(SETTINGS, top_tokens=2))


def test_log_probs_of_0_everywhere_look_as_if_none_had_been_recorded():
    prompts = Prompts([[5]] * 8, [""] * 8, {}, list(range(8)))
    certain = edited(of_rows([[7, 2]] * 8, prompts), logprobs=torch.zeros(16))
    assert looks_unrecorded(certain, SETTINGS)
    assert not looks_unrecorded(certain, replace(SETTINGS, greedy=True))
    assert not looks_unrecorded(certain, replace(SETTINGS, sampling=Sampling(0.7, top_k=1)))
    assert not looks_unrecorded(edited(certain, logprobs=at(certain.logprobs, 4, -0.1)), SETTINGS)
    few = GOOD.select(torch.tensor([1]))
    assert not looks_unrecorded(edited(few, logprobs=torch.zeros(1)), SETTINGS)


class LoadsOneThing(Recorded):
    def load(self, policy):
        pass


class NotToldOfRows(Recorded):
    def generate(self, prompts, settings):
        return self.found


@pytest.mark.parametrize(("kind", "words"), [
    (LoadsOneThing, r"load\(policy\) cannot be called with \(policy, version\): too many"),
    (NotToldOfRows, r"generate\(prompts, settings\) cannot be called with \(prompts, settings, row_ended\)"),
])  # fmt: skip
def test_an_engine_is_called_by_position_and_must_take_what_it_is_given(kind, words):
    assert make_engine(Recorded, EngineSettings()).load(None, 1) is None  # whatever it calls its parameters
    with pytest.raises(ConfigError, match=words):
        make_engine(kind, EngineSettings())
