"""transformers' continuous batching: what it is asked, what it leaves alone, and what becomes of its errors."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.torch_version import TorchVersion
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput

from nearstep.common.errors import ConfigError, ModelError, TrainingError
from nearstep.config.axes import ENGINES as NAMES
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy, make_policy
from nearstep.rollout import continuous_batching
from nearstep.rollout.build import ENGINES, make_engine
from nearstep.rollout.continuous_batching import OLDEST, ContinuousBatchingEngine
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play, require_top_tokens
from nearstep.testing import check_engine
from nearstep.types import Prompts
from tests.tiny import tiny_causal_lm

PROMPTS = Prompts([[7] * 3, [8], [9, 10] * 40], ["", "", ""], {}, [4, 5, 6])
SETTINGS = GenerationSettings(Sampling(0.7, top_p=0.9), 6, (3, 9), seed=0, vocabulary=200, limits=(1, 6, 4))

pytestmark = pytest.mark.skipif(
    TorchVersion(transformers.__version__) < OLDEST, reason=f"transformers {OLDEST} or newer is needed"
)


def engine_of(policy):
    engine = ContinuousBatchingEngine(EngineSettings(max_rows=2))
    engine.load(policy, version=3)
    return engine


def test_every_name_has_an_engine():
    assert tuple(ENGINES) == NAMES


@pytest.mark.slow
def test_rows_are_what_was_asked_and_nothing_else_is_changed():
    model = tiny_causal_lm("llama")
    policy = make_policy(model)
    model.model.layers[1].train()
    modes = [module.training for module in model.modules()]
    before, attention = torch.get_rng_state(), model.config._attn_implementation
    engine = engine_of(policy)
    first, again = (play(engine, PROMPTS, SETTINGS, version=3) for _ in range(2))
    assert all(
        count == limit or ids[-1] in SETTINGS.stop_ids
        for count, limit, ids in zip(first.action_counts, SETTINGS.limits, first.completion_ids(), strict=True)
    )
    assert first.completion_ids() == again.completion_ids()
    assert int(first.actions.max()) < 200  # of 258 logits
    assert any(modes)
    assert modes == [module.training for module in model.modules()]
    with torch.no_grad():
        known = replace(policy, vocabulary=200)
        trainer = rollout_logprobs(known, first, SETTINGS.sampling).sampled
    torch.testing.assert_close(first.logprobs, trainer, atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == attention


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (lambda: make_policy(tiny_causal_lm("llama"), autocast=True), "bf16"),
        (lambda: make_policy(tiny_causal_lm("llama").double()), "float64"),
        (lambda: Policy(Own()), "Own is none"),
    ],
)
def test_what_it_cannot_sample_from_is_refused_with_what_would_do(policy, text):
    with pytest.raises(ModelError, match=text) as refused:
        ContinuousBatchingEngine(EngineSettings()).load(policy(), 0)
    assert "engine = transformers" in str(refused.value)


def test_an_old_transformers_is_refused_before_a_run(monkeypatch):
    monkeypatch.setattr(continuous_batching, "transformers", SimpleNamespace(__version__="5.17.0"))
    with pytest.raises(ConfigError, match=r"needs transformers 5\.20 or newer, and here is 5\.17\.0"):
        make_engine("continuous_batching", EngineSettings())


def test_top_tokens_are_refused_before_a_run():
    with pytest.raises(ConfigError, match=r"records none.*records them: transformers"):
        require_top_tokens(ContinuousBatchingEngine(EngineSettings()), 5)


def test_an_architecture_that_it_gets_wrong_is_refused(monkeypatch):
    def other(policy, rollout, sampling):
        return SimpleNamespace(sampled=rollout_logprobs(policy, rollout, sampling).sampled - 0.01)

    monkeypatch.setattr(continuous_batching, "rollout_logprobs", other)
    with pytest.raises(ModelError, match=r"0\.01 nats from the trainer's"):
        engine_of(make_policy(tiny_causal_lm("llama")))


class Manager(ContinuousBatchingManager):
    """In the place of transformers': answers what it is told to, and then its thread is over."""

    answers: tuple[dict[str, object], ...] = ()
    fatal: Exception | None = None

    def __init__(self, model, sampling, cache):
        self.cache, self.left = cache, list(self.answers)
        self.background_thread_status = SimpleNamespace(fatal_error=self.fatal)

    def add_request(self, ids, request_id, max_new_tokens, eos_token_id):
        return request_id

    def start(self):
        self.stopped = False

    def is_running(self):
        return bool(self.left)

    def get_result(self, timeout):
        usual = {"generated_tokens": [5], "logprobs": [-1.0]}
        return GenerationOutput(**{**usual, **self.left.pop(0)}) if self.left else None

    def stop(self, hard_stop):
        assert hard_stop

    def destroy(self):
        pass


@pytest.mark.parametrize(
    ("answers", "fatal", "text"),
    [
        (({"request_id": "row-0"},), None, r"ended without rows \[1, 2\]"),
        ((), RuntimeError("no memory"), r"ended without rows \[0, 1, 2\]: RuntimeError: no memory"),
        (({"request_id": "row-1", "error": "too long"},), None, r"row 1 \(episode 5.*too long"),
        (({"request_id": "row-1"},), None, "gave 1 tokens and 1 log-probs for row 1"),
        (({"request_id": "row-0", "logprobs": []},), None, "gave 1 tokens and 0 log-probs for row 0"),
        (({"request_id": "other"}, {"request_id": "row-0"}), None, r"ended without rows \[1, 2\]"),
    ],
)
def test_missing_and_broken_rows_are_errors(answers, fatal, text, monkeypatch):
    engine = ContinuousBatchingEngine(EngineSettings(), make_policy(tiny_causal_lm("llama")))
    monkeypatch.setattr(continuous_batching, "ContinuousBatchingManager", Manager)
    monkeypatch.setattr(Manager, "answers", answers)
    monkeypatch.setattr(Manager, "fatal", fatal)
    with pytest.raises(TrainingError, match=text):
        engine.generate(PROMPTS, SETTINGS)


def test_the_cache_is_as_large_as_the_rows_need_and_shares_nothing():
    cache = continuous_batching._cache(EngineSettings(max_rows=2), PROMPTS, SETTINGS, SETTINGS.limits)
    # 80 + 4 + 1 tokens take two pages of 64, and the others one; the two longest may be there together.
    assert cache.num_blocks == 3 + 2
    assert not cache.allow_block_sharing
    other = continuous_batching._cache(EngineSettings(), replace(PROMPTS, episodes=[4, 5, 7]), SETTINGS, (6, 6, 6))
    assert cache.seed != other.seed


@pytest.mark.slow
def test_it_keeps_the_laws_of_engines():
    check_engine(ContinuousBatchingEngine)
