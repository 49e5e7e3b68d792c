"""The laws of engines: ours keeps them, a drifting one those that are universal, and broken ones are caught."""

from dataclasses import replace

import pytest
import torch
from benchmarks.drift.engine import DriftingEngine

from nearstep.common.errors import ConformanceError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import frozen_copy
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.testing import check_engine
from nearstep.testing.engines import LAWS
from nearstep.types import TopLogprobs


class Edited(TransformersEngine):
    """Ours, with an edit of what it plays."""

    def generate(self, prompts, *, top_k=0, limits=None):
        return self.edit(super().generate(prompts, top_k=top_k, limits=limits))

    def edit(self, rollout):
        return rollout


class Shuffled(Edited):
    def edit(self, rollout):
        return rollout.select(torch.arange(len(rollout)).flip(0))


class AlwaysFinished(Edited):
    def edit(self, rollout):
        return replace(rollout, finished=torch.ones_like(rollout.finished))


class StopsAtOneToken(TransformersEngine):
    def __init__(self, settings):
        super().__init__(replace(settings, stop_ids=settings.stop_ids[:1]))


class StopsUnasked(TransformersEngine):
    def __init__(self, settings):
        super().__init__(replace(settings, stop_ids=settings.stop_ids or tuple(range(12))))


class NoLimits(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None):
        return super().generate(prompts, top_k=top_k)


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
    def generate(self, prompts, *, top_k=0, limits=None):
        placed = replace(prompts, episodes=list(range(len(prompts))))
        return super().generate(placed, top_k=top_k, limits=limits)


class OneEpisode(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None):
        same = replace(prompts, episodes=[0] * len(prompts))
        return super().generate(same, top_k=top_k, limits=limits)


class OneSeed(TransformersEngine):
    def __init__(self, settings):
        super().__init__(replace(settings, seed=7))


class TellsHalf(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None, row_ended=None):
        def told(row, ids, finished):
            row_ended(row, ids[: len(ids) // 2], finished)

        return super().generate(prompts, top_k=top_k, limits=limits, row_ended=row_ended and told)


class TellsTwice(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None, row_ended=None):
        def told(row, ids, finished):
            row_ended(0, ids, finished)

        return super().generate(prompts, top_k=top_k, limits=limits, row_ended=row_ended and told)


class TellsNothing(TransformersEngine):
    """Which is allowed, as is one that does not take `row_ended`."""

    def generate(self, prompts, *, top_k=0, limits=None, row_ended=None):
        return super().generate(prompts, top_k=top_k, limits=limits)


class AheadOfItsTime(TransformersEngine):
    def load(self, policy, version):
        super().load(policy, version + 1)


class GlobalNoise(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None):
        torch.rand(1)
        return super().generate(prompts, top_k=top_k, limits=limits)


class Untempered(Edited):
    """What vLLM records unless it is told otherwise: log-probs before the temperature."""

    def edit(self, rollout):
        with torch.no_grad():
            raw = rollout_logprobs(self.policy, rollout, Sampling(1.0))
            top = None if rollout.top is None else TopLogprobs(rollout.top.ids, raw.top)
            return replace(rollout, logprobs=raw.sampled, top=top)


class LeastProbable(TransformersEngine):
    def generate(self, prompts, *, top_k=0, limits=None):
        rollout = super().generate(prompts, limits=limits)
        if top_k == 0:
            return rollout
        others = (rollout.actions[:, None] + torch.arange(top_k)) % 24
        asked = replace(rollout, top=TopLogprobs(others, torch.zeros(others.shape)))
        with torch.no_grad():
            return replace(
                asked, top=TopLogprobs(others, rollout_logprobs(self.policy, asked, self.settings.sampling).top)
            )


class FirstWeightsForEver(TransformersEngine):
    def load(self, policy, version):
        if self.policy is None:
            super().load(frozen_copy(policy).policy, version)


def no_engine(settings):
    return settings


BROKEN = {
    "protocol": no_engine,
    "layout": Shuffled,
    "ends": AlwaysFinished,
    "no_stop": StopsUnasked,
    "limits": NoLimits,
    "normal": HalfPrecision,
    "top_tokens": WithoutTheSampled,
    "own_episode": ByPlaceInTheBatch,
    "episodes_differ": OneEpisode,
    "seed": OneSeed,
    "row_ends": TellsHalf,
    "version": AheadOfItsTime,
    "hands_off": GlobalNoise,
    "trainer_logprobs": Untempered,
    "most_probable": LeastProbable,
    "new_weights": FirstWeightsForEver,
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
    check_engine(make, skip=("trainer_logprobs", "most_probable", "new_weights"))


@pytest.mark.parametrize(("law", "make"), BROKEN.items(), ids=BROKEN)
def test_a_broken_one_is_caught_at_its_law(law, make):
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_engine(make)


def test_stopping_at_some_of_the_stop_tokens_breaks_the_law_of_ends():
    with pytest.raises(ConformanceError, match="goes on after its stop token"):
        check_engine(StopsAtOneToken)


def test_an_engine_may_keep_silent_of_rows_but_not_repeat_itself():
    check_engine(Edited)
    check_engine(TellsNothing)
    with pytest.raises(ConformanceError, match=r"breaks the law 'row_ends'(.|\n)*told of the rows \[0, 0"):
        check_engine(TellsTwice)


def test_every_law_is_broken_by_one():
    assert list(BROKEN) == [law.name for law in LAWS]
