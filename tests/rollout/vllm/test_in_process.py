"""vLLM in the process, as far as it can be seen without vLLM: the order of its calls, and what its answers become."""

import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from nearstep.common.errors import ConfigError, ModelError, TrainingError
from nearstep.models.roles import make_policy
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import EngineSettings, NumberedEngine, rest
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.rollout.vllm import in_process
from nearstep.rollout.vllm.in_process import VLLMEngine
from nearstep.rollout.vllm.requests import SampledRow
from nearstep.testing.world import small_model


class FakeLLM:
    """vLLM's side of loading and sleeping: what was called, in order."""

    def __init__(self, *, sleeps, forgets=True):
        self.calls, self.weights, self.forgets = [], {}, forgets
        model_config = SimpleNamespace(enable_sleep_mode=sleeps)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config))

    def collective_rpc(self, method, kwargs=None):
        self.calls.append(method)
        if kwargs is not None:
            self.weights = dict(kwargs["weights_iterator"])
        torch.rand(3)  # vLLM draws from the global generator

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")
        return self.forgets

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags[0]}")


def started(monkeypatch, fake):
    monkeypatch.setattr(in_process, "_started", lambda *given: fake)
    return VLLMEngine(EngineSettings())


def test_weights_wake_first_and_caches_last(monkeypatch):
    fake, policy = FakeLLM(sleeps=True), make_policy(small_model())
    engine = started(monkeypatch, fake)
    engine.load(policy, 1)
    rest(NumberedEngine(engine))
    rest(engine)
    engine.load(policy, 2)
    weights, caches = ["reload_weights", "pack_heads"], "reset_prefix_cache"
    assert fake.calls == [*weights, caches, "sleep 2", "wake weights", *weights, "wake kv_cache", caches]
    assert (engine.version, engine.rows) == (2, 24)


def test_nothing_sleeps_where_vllm_cannot_or_the_engine_has_no_sleep(monkeypatch):
    fake = FakeLLM(sleeps=False)
    engine = started(monkeypatch, fake)
    rest(engine)
    engine.load(make_policy(small_model()), 1)
    rest(engine)
    rest(TransformersEngine(EngineSettings()))
    assert fake.calls == ["reload_weights", "pack_heads", "reset_prefix_cache"]


def test_weights_have_the_names_of_a_folder_and_the_generator_stays(monkeypatch):
    fake, model = FakeLLM(sleeps=False), small_model()
    before = torch.get_rng_state()
    started(monkeypatch, fake).load(make_policy(model), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert fake.weights.keys() == model.state_dict().keys()
    tied = small_model()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    started(monkeypatch, fake).load(make_policy(tied), 1)
    assert "lm_head.weight" not in fake.weights
    assert "model.embed_tokens.weight" in fake.weights


def test_a_cache_that_stays_is_told(monkeypatch):
    engine = started(monkeypatch, FakeLLM(sleeps=False, forgets=False))
    with pytest.raises(TrainingError, match="could not forget the keys and values of older weights"):
        engine.load(make_policy(small_model()), 1)


def test_what_vllm_cannot_load_is_refused(monkeypatch):
    engine = started(monkeypatch, FakeLLM(sleeps=False))
    with pytest.raises(ModelError, match="engine = vllm computes in float32 at most"):
        engine.load(make_policy(small_model().double()), 1)


def test_without_vllm_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(in_process, "is_installed", lambda package: False)
    with pytest.raises(ConfigError, match="needs vLLM, which is not installed here"):
        make_engine("vllm", EngineSettings())


def test_flat_answers_are_read():
    """At each token the sampled one first, then the most probable ones."""
    flat = SimpleNamespace(token_ids=[4, 1, 4, 2, 2, 6], logprobs=[-1.5, -0.5, -1.5, -0.1, -0.1, -math.inf])
    output = SimpleNamespace(token_ids=[4, 2], logprobs=flat)
    assert in_process._answer(output, 2) == SampledRow(
        [4, 2], [-1.5, -0.1], [[1, 4], [2, 6]], [[-0.5, -1.5], [-0.1, -math.inf]]
    )
    plain = SimpleNamespace(token_ids=[4, 2], logprobs=SimpleNamespace(token_ids=[4, 2], logprobs=[-1.5, -0.1]))
    assert in_process._answer(plain, 0) == SampledRow([4, 2], [-1.5, -0.1], [], [])


class Stepping:
    """An engine of vLLM's that ends rows in reverse order, one a step, and may break off."""

    def __init__(self, *, breaks_after=None):
        self.added, self.aborted, self.breaks_after, self.steps = [], [], breaks_after, 0

    def add_request(self, name, prompt, parameters):
        self.added.append(name)

    def has_unfinished_requests(self):
        return bool(self.added)

    def step(self):
        self.steps += 1
        if self.steps == self.breaks_after:
            raise KeyboardInterrupt
        flat = SimpleNamespace(token_ids=[5], logprobs=[-0.5])
        output = SimpleNamespace(token_ids=[5], logprobs=flat)
        return [SimpleNamespace(request_id=self.added.pop(), finished=True, outputs=[output])]

    def abort_request(self, names):
        self.aborted += names


def test_rows_are_told_as_they_end_and_none_goes_on_after_an_interruption(monkeypatch):
    monkeypatch.setattr(in_process, "_parameters", lambda request: None)
    request = in_process.RowRequest((1,), 1, 0, 1.0, 1.0, 0, (), 0)
    engine = Stepping()
    assert [row for row, _ in in_process._played(engine, [request] * 3)] == [2, 1, 0]
    assert engine.aborted == []
    engine = Stepping(breaks_after=2)
    with pytest.raises(KeyboardInterrupt):
        list(in_process._played(engine, [request] * 3))
    assert engine.aborted == ["row-0", "row-1"]


def test_the_environment_is_the_users_again(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    before = dict(os.environ)
    with in_process._environment():
        assert (os.environ["RANK"], os.environ["VLLM_NO_USAGE_STATS"]) == ("0", "1")
    assert dict(os.environ) == before


def test_classes_that_vllm_rewrites_are_the_trainers_again():
    """As its compiling decorator does to a family that it runs by transformers' own classes."""

    class Other:
        pass

    class Family(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

    model, states = Family(), torch.ones(1, 2)
    before, expected = dict(vars(Family)), model(states)
    with in_process._own_classes(torch.nn.Sequential(model)):
        Family.__bases__ = (*Family.__bases__, Other)
        Family.__init__ = lambda self, *, vllm_config: None
        Family.__call__ = lambda self, *given: self.do_not_compile
        with pytest.raises(AttributeError):
            model(states)
    assert torch.equal(model(states), expected)
    assert Family.__bases__ == (torch.nn.Linear,)
    assert dict(vars(Family)) == before
    assert isinstance(Family(), Family)


def test_whatever_vllm_meets_in_a_model_is_told_with_what_would_do(monkeypatch):
    def start(**settings):
        raise AttributeError("'Family' object has no attribute 'weights'")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
    with pytest.raises(ModelError, match=r"does not run LlamaForCausalLM: AttributeError.*use engine = transformers"):
        VLLMEngine(EngineSettings()).load(make_policy(small_model()), 1)
