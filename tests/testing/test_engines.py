"""The laws of engines: ours keeps them, a drifting one those that are universal, and broken ones are caught."""

from dataclasses import replace

import pytest
import torch
from benchmarks.drift.engine import DriftingEngine
from examples.several_turns import TwoSegments, TwoTurns

from nearstep.common.errors import ConformanceError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import frozen_copy
from nearstep.rollout.engine import Capabilities, EngineSettings
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.testing import check_engine
from nearstep.testing.engines import LAWS, SETTINGS
from nearstep.types import TopLogprobs

pytestmark = pytest.mark.slow  # dear, and the parts have tests of their own


class Edited(TransformersEngine):
    """Ours, with an edit of what it plays."""

    def generate(self, prompts, settings, row_ended=None):
        return self.edit(super().generate(prompts, settings, row_ended))

    def edit(self, rollout):
        return rollout


class Shuffled(Edited):
    def edit(self, rollout):
        return rollout.select(torch.arange(len(rollout)).flip(0))


class AlwaysFinished(Edited):
    def edit(self, rollout):
        return replace(rollout, finished=torch.ones_like(rollout.finished))


class Asked(TransformersEngine):
    """Ours, asked for something else."""

    def generate(self, prompts, settings, row_ended=None):
        return super().generate(prompts, self.other(settings), row_ended)


class StopsAtOneToken(Asked):
    def other(self, settings):
        return replace(settings, stop_ids=settings.stop_ids[:1])


class StopsUnasked(Asked):
    def other(self, settings):
        return replace(settings, stop_ids=settings.stop_ids or tuple(range(12)))


class NoLimits(Asked):
    def other(self, settings):
        return replace(settings, limits=None)


class NeverGreedy(Asked):
    def other(self, settings):
        return replace(settings, greedy=False)


class HalfPrecision(Edited):
    def edit(self, rollout):
        return replace(rollout, logprobs=rollout.logprobs.half())


class WithoutTheSampled(Edited):
    def edit(self, rollout):
        if rollout.top is None:
            return rollout
        ids, logprobs = rollout.top.ids.clone(), rollout.top.logprobs
        sampled = ids == rollout.actions[:, None]
        ids[sampled] = (ids.max(1).values + 1)[sampled.any(1)]
        return replace(rollout, top=TopLogprobs(ids, logprobs))


class ByPlaceInTheBatch(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        placed = replace(prompts, episodes=list(range(len(prompts))))
        return super().generate(placed, settings, row_ended)


class BeginsAgain(TransformersEngine):
    """A row that goes on gets the random numbers that it has had."""

    def generate(self, prompts, settings, row_ended=None):
        return super().generate(prompts, replace(settings, begun=None), row_ended)


class OneEpisode(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        same = replace(prompts, episodes=[0] * len(prompts))
        return super().generate(same, settings, row_ended)


class OneSeed(Asked):
    def other(self, settings):
        return replace(settings, seed=7)


class TellsHalf(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        def told(row, ids, finished):
            row_ended(row, ids[: len(ids) // 2], finished)

        return super().generate(prompts, settings, row_ended and told)


class TellsTwice(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        def told(row, ids, finished):
            row_ended(0, ids, finished)

        return super().generate(prompts, settings, row_ended and told)


class TellsNothing(TransformersEngine):
    """Which is allowed."""

    def generate(self, prompts, settings, row_ended=None):
        return super().generate(prompts, settings)


class OnlySamples(ByPlaceInTheBatch):
    """Which is allowed to one that says so: no top tokens, no limits of rows, rows that depend on the batch."""

    def capabilities(self):
        return Capabilities()

    def generate(self, prompts, settings, row_ended=None):
        assert (settings.top_tokens, settings.limits, row_ended) == (0, None, None)
        return super().generate(prompts, settings)


class SaysOtherwise(TransformersEngine):
    asked = 0

    def capabilities(self):
        self.asked += 1
        return Capabilities(top_tokens=self.asked % 2 == 0)


class OnceOnly(TransformersEngine):
    closed = False

    def close(self):
        self.closed = True

    def load(self, policy, version):
        assert not self.closed, "it was closed"
        super().load(policy, version)


class AheadOfItsTime(TransformersEngine):
    def load(self, policy, version):
        super().load(policy, version + 1)


class GlobalNoise(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        torch.rand(1)
        return super().generate(prompts, settings, row_ended)


class Untempered(Edited):
    """What vLLM records unless it is told otherwise: log-probs before the temperature."""

    def edit(self, rollout):
        with torch.no_grad():
            raw = rollout_logprobs(self.policy, rollout, Sampling(1.0))
            top = None if rollout.top is None else TopLogprobs(rollout.top.ids, raw.top)
            return replace(rollout, logprobs=raw.sampled, top=top)


class LeastProbable(Edited):
    def edit(self, rollout):
        if rollout.top is None:
            return rollout
        others = (rollout.actions[:, None] + torch.arange(rollout.top.ids.shape[1])) % 24
        asked = replace(rollout, top=TopLogprobs(others, torch.zeros(others.shape)))
        with torch.no_grad():
            logprobs = rollout_logprobs(self.policy, asked, SETTINGS.sampling).top
        return replace(asked, top=TopLogprobs(others, logprobs))


class GreedyFromTheOtherEnd(TransformersEngine):
    """It always takes the same tokens, and they are not the best."""

    def generate(self, prompts, settings, row_ended=None):
        if settings.greedy:
            prompts = replace(prompts, episodes=[0] * len(prompts))
            settings = replace(settings, greedy=False, seed=0)
        return super().generate(prompts, settings, row_ended)


class FirstWeightsForEver(TransformersEngine):
    def load(self, policy, version):
        if self.policy is None:
            super().load(frozen_copy(policy).policy, version)


class NewerThanItsRow(Edited):
    def edit(self, rollout):
        return replace(rollout, action_versions=rollout.versions, policy_version=rollout.policy_version - 1)


BROKEN = {
    "protocol": SaysOtherwise,
    "layout": Shuffled,
    "ends": AlwaysFinished,
    "optional_fields": NewerThanItsRow,
    "no_stop": StopsUnasked,
    "limits": NoLimits,
    "normal": HalfPrecision,
    "top_tokens": WithoutTheSampled,
    "own_episode": ByPlaceInTheBatch,
    "goes_on": BeginsAgain,
    "episodes_differ": OneEpisode,
    "seed": OneSeed,
    "greedy": NeverGreedy,
    "row_ended": TellsHalf,
    "version": AheadOfItsTime,
    "hands_off": GlobalNoise,
    "trainer_logprobs": Untempered,
    "greedy_tokens": GreedyFromTheOtherEnd,
    "most_probable": LeastProbable,
    "new_weights": FirstWeightsForEver,
    "reopens": OnceOnly,
}


def test_ours_keeps_every_law():
    result = check_engine(TransformersEngine)
    assert [law for law, _ in result.held] == [law.name for law in LAWS]
    assert result.subject == "engine TransformersEngine"


@pytest.mark.parametrize("drift", [{"precision": torch.float8_e4m3fn}, {"stale_by": 1}], ids=["rounded", "stale"])
def test_a_drifting_engine_keeps_the_universal_laws_and_no_other(drift):
    def make(settings):
        return DriftingEngine(TransformersEngine(settings), **drift)

    with pytest.raises(ConformanceError, match="'trainer_logprobs'" if "precision" in drift else "'new_weights'"):
        check_engine(make)
    check_engine(make, skip=("trainer_logprobs", "greedy_tokens", "most_probable", "new_weights"))


@pytest.mark.parametrize(("law", "make"), BROKEN.items(), ids=BROKEN)
def test_a_broken_one_is_caught_at_its_law(law, make):
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_engine(make)


def test_stopping_at_some_of_the_stop_tokens_breaks_the_law_of_ends():
    with pytest.raises(ConformanceError, match="goes on after its stop token"):
        check_engine(StopsAtOneToken)


def test_an_engine_may_keep_silent_of_rows_but_not_repeat_itself():
    check_engine(TellsNothing)
    with pytest.raises(ConformanceError, match=r"breaks the law 'row_ended'(.|\n)*told of the rows \[0, 0"):
        check_engine(TellsTwice)


@pytest.mark.parametrize("engine", [TwoTurns, TwoSegments])
def test_engines_of_several_turns_or_rows_keep_the_laws_too(engine):
    assert {"ends", "optional_fields", "trainer_logprobs"} <= {law for law, _ in check_engine(engine).held}


def test_every_law_is_broken_by_one():
    assert list(BROKEN) == [law.name for law in LAWS]


def test_laws_of_what_an_engine_does_not_offer_do_not_bind():
    verdict = check_engine(OnlySamples)
    assert verdict.not_offered == ("limits", "top_tokens", "own_episode", "goes_on", "row_ended", "most_probable")
    assert "6 of what it does not offer (limits, " in verdict.lines()[0]
    assert {law for law, _ in verdict.held}.isdisjoint(verdict.not_offered)


def test_an_object_is_held_to_the_laws_as_it_is():
    engine = TransformersEngine(EngineSettings())
    assert len(check_engine(engine).held) == len(LAWS)
    assert engine.policy is None  # closed


@pytest.mark.parametrize(("given", "words"), [
    (lambda settings: settings, "it has no capabilities, load, generate, close"),
    (3, "it has no capabilities, load, generate, close"),
    (lambda: None, "could not be built from EngineSettings"),
    (type("Silent", (TransformersEngine,), {"capabilities": lambda self: None}), r"capabilities\(\) gave None"),
])  # fmt: skip
def test_what_is_no_engine_is_refused_with_what_it_lacks(given, words):
    with pytest.raises(ConformanceError, match=f"(?s)breaks the law 'protocol'.*{words}"):
        check_engine(given)
