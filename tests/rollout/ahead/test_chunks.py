"""Rows a few tokens at a time: the same tokens as at once, and every action with the version that sampled it."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from nearstep.common.errors import ConfigError
from nearstep.rollout.ahead.chunks import ChunkedGeneration
from nearstep.rollout.ahead.rows import as_tensors, from_tensors, rollout_of
from nearstep.rollout.engine import Capabilities, play, rollout_of_rows
from tests.lanes import slow
from tests.rollout.test_engine import PROMPTS, engine_of, prompts_of
from tests.tiny import tiny_causal_lm

CPU = torch.device("cpu")


@dataclass
class Counting:
    """Answers a row with 1, 2, 3, …, and a stop token (9) behind the fourth; its log-probs are −version."""

    can: Capabilities = field(default_factory=lambda: Capabilities(limits=True, goes_on=True))
    version: int = 0
    calls: list = field(default_factory=list)

    def capabilities(self):
        return self.can

    def load(self, policy, version):
        self.version = version

    def generate(self, prompts, settings, row_ended=None):
        begun = settings.begun or (0,) * len(prompts)
        limits = settings.limits or (settings.response_length,) * len(prompts)
        self.calls.append((prompts.episodes, settings.begun, settings.limits))
        whole = [1, 2, 3, 4, 9]
        answers = [whole[first : first + limit] for first, limit in zip(begun, limits, strict=True)]
        logprobs = [torch.full((len(answer),), -float(self.version)) for answer in answers]
        return rollout_of_rows(prompts, answers, logprobs, [answer[-1] == 9 for answer in answers], self.version)

    def close(self):
        pass


def chunked(engine, settings, chunk_length=2, max_rows=2):
    return ChunkedGeneration(engine, settings, chunk_length, max_rows)


def step(chunks, engine, version):
    engine.load(None, version)
    return {row.episode: row for row in chunks.step(version)}


def test_a_row_goes_on_under_new_weights_and_every_action_keeps_its_version():
    engine = Counting()
    chunks = chunked(engine, replace(engine_of().settings, response_length=8))
    chunks.add(prompts_of([[5], [6, 6], [7]], episodes=[10, 11, 12]))
    assert chunks.beginning() == [10, 11]
    assert step(chunks, engine, 1) == {}  # 1 2
    assert step(chunks, engine, 4) == {}  # 3 4
    ended = step(chunks, engine, 5)  # the stop token
    assert ended.keys() == {10, 11}
    assert chunks.beginning() == [12]
    rollout = rollout_of([ended[10], ended[11]], CPU)
    assert rollout.tokens.tolist() == [5, 1, 2, 3, 4, 9, 6, 6, 1, 2, 3, 4, 9]
    assert rollout.is_action.tolist() == [False, *[True] * 5, False, False, *[True] * 5]
    assert rollout.versions.tolist() == [1, 1, 4, 4, 5] * 2
    assert rollout.logprobs.tolist() == [-1.0, -1.0, -4.0, -4.0, -5.0] * 2
    assert (rollout.policy_version.tolist(), rollout.finished.tolist()) == ([1, 1], [True, True])
    assert engine.calls == [([10, 11], (0, 0), (2, 2)), ([10, 11], (2, 2), (2, 2)), ([10, 11], (4, 4), (2, 2))]


def test_a_row_ends_at_its_limit_too():
    engine = Counting()
    chunks = chunked(engine, replace(engine_of().settings, response_length=3))
    chunks.add(prompts_of([[5]], episodes=[1]))
    step(chunks, engine, 1)
    row = step(chunks, engine, 1)[1]
    assert (row.tokens.tolist(), row.finished) == ([5, 1, 2, 3], False)
    assert engine.calls[-1] == ([1], (2,), (1,))
    assert chunks.rows == []


def test_what_is_wanted_no_longer_is_forgotten():
    engine = Counting()
    chunks = chunked(engine, engine_of().settings)
    chunks.add(prompts_of([[5], [6], [7]], episodes=[1, 2, 3]))
    step(chunks, engine, 1)
    chunks.abandon([1])
    step(chunks, engine, 1)
    assert engine.calls[-1] == ([2, 3], (2, 0), (2, 2))


def test_an_engine_that_cannot_go_on_is_given_whole_rows():
    engine = Counting(Capabilities())
    chunks = chunked(engine, replace(engine_of().settings, response_length=8))
    chunks.add(prompts_of([[5], [6], [7]], episodes=[1, 2, 3]))
    assert [*step(chunks, engine, 1)] == [1, 2]
    assert engine.calls == [([1, 2], None, None)]
    with pytest.raises(ConfigError, match=r"cannot go on with rows \(capabilities\(\).goes_on\)"):
        play(engine, prompts_of([[5]]), replace(engine_of().settings, begun=(0,)))


@pytest.mark.parametrize(("kind", "max_rows"), [slow(("llama", 64)), ("gpt2", 5)])
def test_the_built_in_engine_gives_the_same_rows_in_chunks_as_at_once(kind, max_rows):
    playing = engine_of(kind, top_tokens=3)
    prompts = prompts_of(PROMPTS)
    whole = playing.generate(prompts)
    chunks = chunked(playing.engine, playing.settings, chunk_length=3, max_rows=max_rows)
    chunks.add(prompts)
    rows = {}
    while chunks.rows:
        rows |= {row.episode: row for row in chunks.step(4)}
    again = rollout_of([rows[episode] for episode in prompts.episodes], CPU)
    assert again.tokens.tolist() == whole.tokens.tolist()
    assert again.finished.tolist() == whole.finished.tolist()
    assert again.is_action.tolist() == whole.is_action.tolist()
    torch.testing.assert_close(again.logprobs, whole.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.top.logprobs, whole.top.logprobs, atol=1e-4, rtol=0)


def test_new_weights_change_the_rest_of_a_row_alone():
    playing = engine_of(response_length=12, stop_ids=())
    other = engine_of(model=tiny_causal_lm(seed=9)).engine.policy
    prompts = prompts_of([[1, 2]])
    whole = playing.generate(prompts).completion_ids()[0]
    chunks = chunked(playing.engine, playing.settings, chunk_length=4)
    chunks.add(prompts)
    assert [*chunks.step(4)] == []
    playing.engine.load(other, 5)
    rows = [row for _ in range(2) for row in chunks.step(5)]
    found = rollout_of(rows, CPU).completion_ids()[0]
    assert found[:4] == whole[:4]
    assert found[4:] != whole[4:]
    assert rows[0].versions.tolist() == [4] * 4 + [5] * 8


def test_rows_come_back_from_tensors_as_they_were():
    playing = engine_of(top_tokens=2)
    chunks = chunked(playing.engine, playing.settings, chunk_length=30, max_rows=64)
    chunks.add(prompts_of(PROMPTS))
    rows = [*chunks.step(4)]
    back = [*from_tensors(as_tensors(rows))]
    one, other = rollout_of(sorted(rows, key=lambda row: row.episode), CPU), rollout_of(back, CPU)
    assert [row.episode for row in back] == sorted(row.episode for row in rows)
    for name in ("tokens", "logprobs", "finished", "action_versions", "is_action"):
        assert torch.equal(vars(one)[name], vars(other)[name])
    assert torch.equal(one.top.ids, other.top.ids)
