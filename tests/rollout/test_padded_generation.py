"""Policies that our cache cannot serve generate from their own, or by computing rows anew: the same rollouts."""

from dataclasses import replace

import pytest
import torch

from nearstep.common.errors import ModelError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, GenerationSettings
from nearstep.rollout.recomputing import RecomputedBatch
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.rollout.waves import Wave
from nearstep.types import Prompts
from tests.lanes import slow
from tests.models.test_layouts import Recurrent, tiny

IDS = [[5, 6, 7], [5, 6, 7], [9], [10, 11, 12, 13, 14, 15], [3], [2, 2]]
SAMPLING = Sampling(0.8)


def play(policy, max_rows=4, **changes):
    settings = GenerationSettings(SAMPLING, 9, tuple(range(0, 250, 9)), seed=3)
    prompts = Prompts(IDS, [""] * len(IDS), {}, list(range(len(IDS))))
    engine = TransformersEngine(EngineSettings(max_rows, 40, **changes))
    engine.load(policy, 1)
    return engine.generate(prompts, replace(settings, limits=(9, 2, 9, 9, 1, 9)))


def batches_of(monkeypatch):
    """How many rows each kind of batch had live at each step."""
    seen = {Wave: [], RecomputedBatch: []}
    for kind in seen:
        plain = kind.step
        monkeypatch.setattr(
            kind,
            "step",
            lambda self, tokens, kind=kind, plain=plain: (seen[kind].append(len(self.rows)), plain(self, tokens))[1],
        )
    return seen


@pytest.mark.parametrize("kind", ["bloom", slow("mamba"), "qwen3_next", slow("gptj")])
def test_the_models_own_cache_gives_what_computing_anew_gives(kind, monkeypatch):
    seen = batches_of(monkeypatch)
    policy = make_policy(tiny(kind))
    assert policy.layout.own_cache
    waves = play(policy)
    assert seen[Wave]
    assert not seen[RecomputedBatch]
    anew = play(replace(policy, layout=replace(policy.layout, own_cache=False)))
    assert seen[RecomputedBatch]
    assert torch.equal(waves.tokens, anew.tokens)
    torch.testing.assert_close(waves.logprobs, anew.logprobs, atol=1e-4, rtol=0)
    now = rollout_logprobs(policy, waves, SAMPLING).sampled
    torch.testing.assert_close(waves.logprobs, now, atol=1e-4, rtol=0)
    assert waves.action_counts[[1, 4]].tolist() == [min(2, int(waves.action_counts[1])), 1]


def test_rows_are_computed_anew_only_while_they_live(monkeypatch):
    seen = batches_of(monkeypatch)
    policy = make_policy(Recurrent())
    rollout = play(policy, max_rows=len(IDS))
    counts = rollout.action_counts.tolist()
    assert seen[RecomputedBatch] == [sum(count > step for count in counts) for step in range(1, max(counts))]
    assert not seen[Wave]
    now = rollout_logprobs(policy, rollout, SAMPLING).sampled
    torch.testing.assert_close(rollout.logprobs, now, atol=1e-5, rtol=0)


def test_how_many_rows_are_generated_at_a_time_changes_nothing():
    for policy in (make_policy(tiny("bloom")), make_policy(Recurrent())):
        one, many = play(policy, max_rows=1), play(policy, max_rows=6)
        assert torch.equal(one.tokens, many.tokens)
        torch.testing.assert_close(one.logprobs, many.logprobs, atol=1e-5, rtol=0)


def test_there_is_no_step_of_theirs_to_capture():
    with pytest.raises(
        ModelError, match=r"decode_graphs: BloomForCausalLM runs on padded rows.* leave decode_graphs out"
    ):
        play(make_policy(tiny("bloom")), decode_graphs=True)
