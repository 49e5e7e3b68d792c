"""The engine: recorded log-probs, stop tokens, limits, streams of their own, top tokens, rows that come and go."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.common.errors import ConfigError, TrainingError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import Capabilities, EngineSettings, GenerationSettings, RolloutEngine, play
from nearstep.rollout.sampling import draw
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts
from tests.lanes import slow
from tests.tiny import tiny_causal_lm

STOPS = (3, 7, 11, 50, 60)
PROMPTS = [[number] * (number % 5 + 1) for number in range(1, 14)]


def prompts_of(ids, episodes=None):
    return Prompts(ids=ids, inputs=["" for _ in ids], columns={}, episodes=episodes or list(range(len(ids))))


@dataclass
class Playing:
    """The built-in engine with settings that its calls share."""

    engine: TransformersEngine
    settings: GenerationSettings

    @property
    def policy(self):
        return self.engine.policy

    def generate(self, prompts, **changes):
        return self.engine.generate(prompts, replace(self.settings, **changes))


def engine_of(kind="llama", model=None, max_rows=64, max_tokens=16384, **changes):
    given = {"sampling": Sampling(0.7), "response_length": 20, "stop_ids": STOPS, "seed": 0, **changes}
    engine = TransformersEngine(EngineSettings(max_rows, max_tokens))
    engine.load(make_policy(model or tiny_causal_lm(kind)), version=4)
    return Playing(engine, GenerationSettings(**given))


def rows_of(rollout):
    return rollout.completion_ids()


@pytest.mark.parametrize("kind", ["llama", slow("gpt_neox"), slow("gpt2")])
@pytest.mark.parametrize("sampling", [slow(Sampling(0.7)), Sampling(1.3, top_k=20), Sampling(0.7, top_p=0.8)])
def test_recorded_logprobs_are_those_of_the_trainer_d20(kind, sampling):
    engine = engine_of(kind, sampling=sampling, max_rows=4)
    rollout = engine.generate(prompts_of(PROMPTS))
    again = rollout_logprobs(engine.policy, rollout, sampling).sampled
    torch.testing.assert_close(rollout.logprobs, again, atol=1e-5, rtol=0)


def test_it_is_a_rollout_engine():
    assert isinstance(engine_of().engine, RolloutEngine)


def test_layout_of_a_rollout():
    rollout = engine_of().generate(prompts_of(PROMPTS))
    assert rollout.prompt_ids() == PROMPTS
    assert rollout.policy_version.tolist() == [4] * len(PROMPTS)
    for completion, finished in zip(rows_of(rollout), rollout.finished.tolist(), strict=True):
        assert not set(completion[:-1]) & set(STOPS)
        assert finished == (completion[-1] in STOPS)
        assert finished or len(completion) == 20


def test_responses_stop_at_any_stop_token_and_only_there():
    with_stops = rows_of(engine_of().generate(prompts_of(PROMPTS)))
    without = rows_of(engine_of(stop_ids=()).generate(prompts_of(PROMPTS)))
    assert all(len(row) == 20 for row in without)
    for stopped, full in zip(with_stops, without, strict=True):
        ends = [place for place, token in enumerate(full) if token in STOPS]
        assert stopped == (full[: ends[0] + 1] if ends else full)


def test_pad_and_eos_ids_have_no_meaning_of_their_own_d27():
    """The model's pad id may be drawn in mid-response; it neither ends the row nor counts as finished."""
    model = tiny_causal_lm()
    with torch.no_grad():
        model.lm_head.weight[257] += 10 * model.lm_head.weight[257].sign()
    rollouts = [engine_of(model=model, stop_ids=()).generate(prompts_of([[n] for n in range(30)], list(range(30))))]
    assert any(257 in row[:-1] for row in rows_of(rollouts[0]))
    assert not rollouts[0].finished.any()


@settings(max_examples=3)
@given(st.permutations(range(len(PROMPTS))), st.integers(1, 13), st.integers(5, 60))
def test_a_row_depends_on_its_episode_alone(order, max_rows, max_tokens):
    """Not on the order of rows, nor on how many are generated or prefilled at a time."""
    engine = double_engine(max_rows=max_rows, max_tokens=max_tokens)
    found = rows_of(engine.generate(prompts_of([PROMPTS[row] for row in order], list(order))))
    expected = rows_as_usual()
    assert found == [expected[row] for row in order]


@cache
def rows_as_usual():
    """All rows at once, in their order."""
    return rows_of(double_engine().generate(prompts_of(PROMPTS)))


def double_engine(**changes):
    """One in float64, so that no order of sums shows."""
    return engine_of(model=tiny_causal_lm(dtype=torch.float64), response_length=12, **changes)


def test_samples_of_one_prompt_differ_and_global_generators_do_not_matter():
    one, two = engine_of(), engine_of()
    torch.manual_seed(1)
    first = rows_of(one.generate(prompts_of([[5, 6]] * 6)))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert rows_of(two.generate(prompts_of([[5, 6]] * 6))) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(row) for row in first}) > 3
    assert rows_of(engine_of(seed=1).generate(prompts_of([[5, 6]] * 6))) != first


def test_a_prompt_of_several_rows_is_read_once_and_each_row_is_what_it_is_alone():
    ids = [[5, 6, 8]] * 3 + [[9, 10]] + [[5, 6, 8]] * 2
    together, apart = (engine_of(model=tiny_causal_lm(dtype=torch.float64), max_rows=rows) for rows in (6, 1))
    seen = []
    embedding = together.policy.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0][0].tolist()))
    found, expected = (engine.generate(prompts_of(ids)) for engine in (together, apart))
    assert seen[0] == [5, 6, 8, 9, 10]
    assert rows_of(found) == rows_of(expected)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-12, rtol=0)


def test_limits_by_row():
    rollout = engine_of(stop_ids=()).generate(prompts_of(PROMPTS[:3]), limits=(1, 5, 3))
    assert rollout.action_counts.tolist() == [1, 5, 3]


def test_generation_settings_of_the_model_do_not_leak_d21():
    model = tiny_causal_lm()
    expected = rows_of(engine_of(model=model).generate(prompts_of(PROMPTS)))
    leaky = tiny_causal_lm()
    leaky.generation_config.update(
        top_k=1, temperature=9.0, max_new_tokens=2, eos_token_id=5, do_sample=False, repetition_penalty=3.0
    )
    assert rows_of(engine_of(model=leaky).generate(prompts_of(PROMPTS))) == expected


def test_greedy_takes_the_most_probable_token_as_transformers_does():
    ids = [4, 5, 6]
    expected = tiny_causal_lm().generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    rollout = engine_of(greedy=True, stop_ids=(), response_length=12).generate(prompts_of([ids]))
    assert rollout.tokens.tolist() == expected[0].tolist()


def test_top_tokens_are_the_most_probable_and_hold_the_sampled_one():
    engine = engine_of()
    rollout = engine.generate(prompts_of(PROMPTS), top_tokens=3)
    assert rollout.top.ids.shape == (len(rollout.logprobs), 3)
    assert (rollout.top.ids == rollout.actions[:, None]).any(-1).all()
    again = rollout_logprobs(engine.policy, rollout, Sampling(0.7))
    torch.testing.assert_close(again.top, rollout.top.logprobs, atol=1e-5, rtol=0)
    found = rollout.top.logprobs.gather(
        -1, (rollout.top.ids == rollout.actions[:, None]).int().argmax(-1, keepdim=True)
    )
    torch.testing.assert_close(found[:, 0], rollout.logprobs)
    assert (rollout.top.logprobs[:, 0] >= rollout.top.logprobs[:, 1]).all()


def test_sampled_tokens_follow_their_probabilities():
    """20,000 draws against a chi-square bound that chance passes once in 10,000."""
    torch.manual_seed(0)
    probabilities = torch.rand(40).square()
    probabilities[[0, 17, 39]] = 0
    probabilities /= probabilities.sum()
    draws = draw(probabilities.expand(20_000, -1), torch.rand(20_000, dtype=torch.float64))
    counts = torch.bincount(draws, minlength=40)
    assert counts[[0, 17, 39]].sum() == 0
    possible = probabilities > 0
    expected = 20_000 * probabilities[possible]
    assert ((counts[possible] - expected).square() / expected).sum() < 79.5  # 36 degrees of freedom


@given(st.integers(1, 70), st.floats(0, 1, exclude_max=True), st.integers(0, 2**31))
def test_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary, uniform, seed):
    weights = torch.rand(1, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-3
    probabilities = weights / weights.sum()
    token = int(draw(probabilities, torch.tensor([uniform], dtype=torch.float64)))
    cumulative = probabilities[0].cumsum(0)
    assert cumulative[token] >= uniform - 1e-9
    assert token == 0 or cumulative[token - 1] <= uniform + 1e-9


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_draw_at_its_edges_takes_no_impossible_token(uniform):
    probabilities = torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0]])
    assert draw(probabilities, torch.tensor([uniform], dtype=torch.float64)).item() == (1 if uniform == 0 else 2)


def test_it_tells_of_every_row_when_it_ends_and_not_later():
    engine, told = engine_of(max_rows=4), []

    def row_ended(row, ids, finished):
        told.append((row, ids, finished))

    rollout = play(engine.engine, prompts_of(PROMPTS), engine.settings, row_ended)
    ends = list(zip(rows_of(rollout), rollout.finished.tolist(), strict=True))
    assert sorted(told) == [(row, *end) for row, end in enumerate(ends)]
    assert told != sorted(told)  # in the order of their ends
    assert rows_of(engine.generate(prompts_of(PROMPTS))) == rows_of(rollout)


class Plain:
    """An engine that can do nothing beyond sampling."""

    def __init__(self):
        self.inner, self.told = engine_of(), []

    def capabilities(self):
        return Capabilities()

    def load(self, policy, version):
        self.inner.engine.load(policy, version)

    def generate(self, prompts, settings, row_ended=None):
        self.told.append((settings.top_tokens, settings.limits, row_ended))
        return self.inner.engine.generate(prompts, settings)

    def close(self):
        self.inner.engine.close()


def test_an_engine_that_can_do_no_more_than_sample_plays_and_is_asked_for_no_more():
    engine, told = Plain(), []
    assert isinstance(engine, RolloutEngine)
    rollout = play(engine, prompts_of(PROMPTS), engine.inner.settings, lambda *end: told.append(end))
    assert rows_of(rollout) == rows_of(engine_of().generate(prompts_of(PROMPTS)))
    assert (engine.told, told) == ([(0, None, None)], [])
    for asked, words in (({"top_tokens": 2}, "records none"), ({"limits": (1,)}, "no limits of single rows")):
        with pytest.raises(ConfigError, match=words):
            play(engine, prompts_of(PROMPTS[:1]), replace(engine.inner.settings, **asked))
    assert len(engine.told) == 1


def test_a_distribution_that_is_not_a_number_is_refused_with_row_and_token_e18():
    """A weight that only the second token of row 2 meets: token 9 is fed after it was sampled."""
    engine = engine_of(stop_ids=(), response_length=4)
    prompts = prompts_of(PROMPTS[:4], [8, 9, 10, 11])
    first = [row[0] for row in rows_of(engine.generate(prompts))]
    assert len(set(first) | {1, 2, 3, 4}) == 8  # no first token is a prompt's or another row's
    with torch.no_grad():
        engine.policy.model.get_input_embeddings().weight[first[2]] = torch.nan
    with pytest.raises(TrainingError, match=r"token 2 of the response to row 2 \(episode 10, policy version 4\)"):
        play(engine.engine, prompts, engine.settings)
