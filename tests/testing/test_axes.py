"""The laws of advantages, KL controllers and loss aggregation: ours keep them, and broken ones are caught."""

from dataclasses import dataclass

import pytest
import torch

from nearstep import ConfigError
from nearstep.algorithm.advantage_rules import GAE, GDPO, AgainstGroup, Credit, DiscountedReturn
from nearstep.algorithm.aggregation import SequenceMean, SequenceSum, TokenMean, TokenSum
from nearstep.algorithm.correction import Correction, Corrections
from nearstep.algorithm.kl_controllers import AdaptiveKL, FixedKL, ScheduledKL
from nearstep.algorithm.several_outputs import EnsembleHead, QuantileHead
from nearstep.algorithm.turn_rules import TurnGAE
from nearstep.algorithm.value_heads import BCEHead, BoundedHead, HLGaussHead, LinearHead
from nearstep.common.errors import ConformanceError
from nearstep.testing import advantages, aggregations, corrections, kl_controllers, value_heads
from nearstep.testing.kinds import kind_of

OURS = {
    "advantage": [
        GAE(), GAE(lam_length_alpha=0.5, lam_critic=1.0), AgainstGroup("group_mean"), AgainstGroup("group_normalized"),
        AgainstGroup("leave_one_out"), DiscountedReturn(0.9), TurnGAE(), TurnGAE(1.0, 0.5, lam_critic=1.0), GDPO(),
    ],
    "kl_controller": [FixedKL(0.05), AdaptiveKL(0.1, 6.0, 10_000), ScheduledKL(0.1, 0.0, "cosine")],
    "correction": [
        Corrections(), Correction(), Correction(high=2.0), Correction("token", "mask", low=0.5, high=5.0),
        Correction("row", "truncate", high=2.0), Correction("row", "mask", "k3", high=1.0),
        Correction("row", "reject", "largest", low=1e-4, high=100.0),
        Corrections((Correction("row_mean", "reject", low=0.99, high=1.01), Correction(high=2.0))),
    ],
    "loss_aggregation": [TokenMean(), SequenceMean(), SequenceSum(), SequenceSum(7), TokenSum()],
    "value_head": [
        LinearHead(), BoundedHead(-5.0, 3.0), BCEHead(-10.0, 40.0), HLGaussHead(0.0, 1.0), QuantileHead(16),
        EnsembleHead(3),
    ],
}  # fmt: skip
SUITES = {
    "advantage": (advantages.check_advantage, advantages.LAWS),
    "kl_controller": (kl_controllers.check_kl_controller, kl_controllers.LAWS),
    "correction": (corrections.check_correction, corrections.LAWS),
    "loss_aggregation": (aggregations.check_loss_aggregation, aggregations.LAWS),
    "value_head": (value_heads.check_value_head, value_heads.LAWS),
}


@pytest.mark.parametrize(("kind", "ours"), [(kind, each) for kind, all_of in OURS.items() for each in all_of])
def test_ours_keep_the_laws(kind, ours):
    assert kind_of(ours) == kind
    check, laws = SUITES[kind]
    skip = {TokenSum(): ("batch_size",), GDPO(): ("own_prompt",)}.get(ours, ())
    found = check(ours, skip=skip)
    left_out = {*skip, *found.not_offered}
    assert [law for law, _ in found.held] == [law.name for law in laws if law.name not in left_out]
    assert found.not_offered == (("in_range",) if kind == "value_head" and ours.value_range is None else ())


class OwnProcessOnly(AgainstGroup):
    def credit(self, inputs):
        totals = inputs.row_totals
        return Credit(inputs.to_actions(totals - totals.mean()))


class MeanOfAll(AgainstGroup):
    """Rows without a score count."""

    def credit(self, inputs):
        totals = inputs.groups(inputs.row_totals)
        return Credit(inputs.to_actions(inputs.own_rows(totals - totals.mean())))


class SaysNothingOfTokens(DiscountedReturn):
    pass


class OnlyOneAsks(AgainstGroup):
    def credit(self, inputs):
        if inputs.first_row == 0:
            inputs.groups(inputs.row_totals)
        return Credit(torch.zeros_like(inputs.rewards))


class ReadsValues(DiscountedReturn):
    def credit(self, inputs):
        return Credit(super().credit(inputs).advantages - inputs.values)


class NoTargets(GAE):
    def credit(self, inputs):
        return Credit(super().credit(inputs).advantages)


class InPlace(DiscountedReturn):
    def credit(self, inputs):
        inputs.rewards.mul_(2)
        return super().credit(inputs)


class Cost(DiscountedReturn):
    def credit(self, inputs):
        return Credit(-super().credit(inputs).advantages)


class LosesTheScore(GAE):
    def credit(self, inputs):
        totals = inputs.to_actions(inputs.row_totals)
        return Credit(totals + inputs.rewards - inputs.values, totals)


class NoCritic:
    uses_token_rewards = False

    def credit(self, inputs):
        return Credit(inputs.rewards)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (NoCritic(), "protocol"),
        (NoTargets(), "one_value_each"),
        (InPlace(), "inputs_untouched"),
        (ReadsValues(), "without_critic"),
        (SaysNothingOfTokens(uses_token_rewards=False), "token_rewards"),
        (AgainstGroup("group_mean", uses_token_rewards=True), "token_rewards"),
        (MeanOfAll("group_mean"), "unscored"),
        (OnlyOneAsks("group_mean"), "every_process"),
        (Cost(), "more_is_better"),
        (LosesTheScore(), "after_eos"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_broken_advantages_are_caught(broken, law, monkeypatch):
    monkeypatch.setattr(advantages, "WAIT_SECONDS", 0.5)
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        advantages.check_advantage(broken)


def test_an_advantage_that_sees_its_own_process_alone_is_caught():
    @dataclass(frozen=True)
    class Scored(OwnProcessOnly):
        def credit(self, inputs):
            totals = torch.where(inputs.scored, inputs.row_totals, 0)
            return Credit(inputs.to_actions(totals - totals.sum() / inputs.scored.sum()))

    with pytest.raises(ConformanceError, match=r"'every_process'(.|\n)*in one process and the rest in another"):
        advantages.check_advantage(Scored("group_mean"))


class Remembers(FixedKL):
    seen = 0

    def next(self, coefficient, measured):
        type(self).seen += 1
        return self.coefficient + type(self).seen


class Runaway(FixedKL):
    def next(self, coefficient, measured):
        return coefficient * 1e9


class Proportional(FixedKL):
    def next(self, coefficient, measured):
        return self.coefficient * measured.kl


class Backwards(AdaptiveKL):
    def next(self, coefficient, measured):
        return 2 * coefficient - super().next(coefficient, measured)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Proportional(0.1), "coefficient"), (Runaway(1.0), "whole_run"), (Remembers(0.1), "repeatable"),
        (Backwards(0.1, 6.0, 10_000), "direction"),
    ],
)  # fmt: skip
def test_broken_controllers_are_caught(broken, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        kl_controllers.check_kl_controller(broken)


class WholeNumbers(TokenMean):
    def weights(self, action_counts):
        return torch.ones(int(action_counts.sum()), dtype=torch.long)


class OfThePart(TokenMean):
    def weights(self, action_counts):
        return super().weights(action_counts) / max(int(action_counts.sum()), 1)


class NoWeights(TokenMean):
    def weights(self, action_counts):
        return 0 * super().weights(action_counts)


class NotClamped(TokenMean):
    def divisor(self, counts):
        return counts.tokens


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (WholeNumbers(), "one_weight_each"), (OfThePart(), "own_row"), (NotClamped(), "divisor"),
        (TokenSum(), "batch_size"), (object(), "protocol"), (NoWeights(), "one_weight_each"),
    ],
)  # fmt: skip
def test_broken_aggregations_are_caught(broken, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        aggregations.check_loss_aggregation(broken)


class OfTheBatch(Correction):
    def importance(self, trainer, engine, rows):
        weight = super().importance(trainer, engine, rows)
        return weight / weight.sum().clamp(min=1) * len(weight) if len(weight) else weight


class Log(Correction):
    def importance(self, trainer, engine, rows):
        return trainer - engine


class Unheld(Correction):
    def importance(self, trainer, engine, rows):
        return (trainer - engine).exp()


class Halved(Correction):
    def importance(self, trainer, engine, rows):
        return super().importance(trainer, engine, rows) / 2


class Inverted(Correction):
    def importance(self, trainer, engine, rows):
        return super().importance(engine, trainer, rows)


class Writes(Correction):
    def importance(self, trainer, engine, rows):
        trainer.clamp_(max=0).sub_(1e-3)
        return super().importance(trainer, engine, rows)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Log(), "one_weight_each"), (Unheld(), "one_weight_each"), (OfTheBatch(), "own_row"), (Halved(), "agreement"),
        (Writes(), "inputs_untouched"), (Correction(low=1.5), "agreement"), (object(), "protocol"),
        (Inverted(high=2.0), "direction"),
    ],
)  # fmt: skip
def test_broken_corrections_are_caught(broken, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        corrections.check_correction(broken)


def test_kinds_are_told_by_one_telling_member_and_the_laws_name_what_is_missing():
    assert kind_of(NoCritic()) == "advantage"
    with pytest.raises(ConformanceError, match="a NoCritic without needs_critic"):
        advantages.check_advantage(NoCritic())
    with pytest.raises(ConfigError, match="has the members of no axis"):
        kind_of(3)
