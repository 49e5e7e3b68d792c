"""One forward pass: which rows are compared, what the loss is divided by, and what is refused."""

import math

import pytest
import torch

from nearstep.common.errors import DataError, TrainingError
from nearstep.models.reward_model import make_reader
from nearstep.reward_modeling.examples import Comparison, Grade, PairBatch, PreferenceLabel
from nearstep.reward_modeling.objective import LearningModel, Pairwise, Regression
from tests.tiny import tiny_scalar_model


class Reader:
    """Rewards that are given: of a row, its first id."""

    def rewards(self, groups):
        return torch.tensor([float(row[0]) for rows in groups for row in rows], dtype=torch.float64)


def comparison(*firsts, labels=((0, 1),)):
    return Comparison(tuple([first, 9] for first in firsts), tuple(PreferenceLabel(*label) for label in labels))


def learner(objective, reader=None):
    return LearningModel(torch.nn.Linear(1, 1), reader or Reader(), objective)


def passed(objective, examples, **options):
    return learner(objective)(**objective.inputs(examples), **options)


def softplus(x):
    return math.log(1 + math.exp(x))


def test_rows_are_numbered_through_all_groups():
    batch = PairBatch.of([comparison(5, 6), comparison(1, 2, 3, labels=((2, 0), (1, 0, 0.5, 0.8)))])
    assert batch.better.tolist() == [0, 4, 3]
    assert batch.worse.tolist() == [1, 2, 2]
    assert batch.margins.tolist() == [0, 0, 0.5]
    assert batch.preferences.tolist() == pytest.approx([1, 1, 0.8])


def test_pairs_and_best_rows_of_a_comparison():
    several = comparison(1, 2, 3, labels=((2, 0), (2, 1), (1, 0, 0.0, 0.5)))
    assert [pair.rows[0][0] for pair in several.pairs()] == [3, 3, 2]
    assert several.best_rows() == [[3, 9]]
    assert comparison(1, 2, labels=((0, 1, 0.0, 0.5),)).best_rows() == [[1, 9], [2, 9]]


def test_loss_is_the_mean_over_pairs():
    found = passed(Pairwise(), [comparison(3, 1), comparison(0, 1)])
    assert found["loss"].item() == pytest.approx((softplus(-2) + softplus(1)) / 2)
    assert found["rewards"].tolist() == [[3, 1], [0, 1]]


def test_margins_smoothing_and_centring_each_enter_the_loss():
    pair = comparison(3, 1, labels=((0, 1, 0.5),))
    assert passed(Pairwise(margins=2.0), [pair])["loss"].item() == pytest.approx(softplus(-1))
    assert passed(Pairwise(margins=0.0), [pair])["loss"].item() == pytest.approx(softplus(-2))
    smooth = 0.8 * softplus(-2) + 0.2 * softplus(2)
    assert passed(Pairwise(0.2, margins=0.0), [pair])["loss"].item() == pytest.approx(smooth)
    centred = passed(Pairwise(centring=0.1, margins=0.0), [pair])["loss"].item()
    assert centred == pytest.approx(softplus(-2) + 0.1 * 16)


def test_preferences_weigh_both_orders_and_smoothing_draws_them_to_one_half():
    loss = {
        (preference, smoothing): passed(Pairwise(smoothing), [comparison(3, 1, labels=((0, 1, 0.0, preference),))])
        for preference in (0.5, 0.75) for smoothing in (0.0, 0.1)
    }  # fmt: skip
    for given, p in {(0.5, 0.0): 0.5, (0.5, 0.1): 0.5, (0.75, 0.0): 0.75, (0.75, 0.1): 0.7}.items():
        assert loss[given]["loss"].item() == pytest.approx(p * softplus(-2) + (1 - p) * softplus(2))


def test_a_tie_draws_both_rewards_together():
    rewards = torch.tensor([3.0, 1.0], requires_grad=True)
    tie = Pairwise().inputs([comparison(0, 0, labels=((0, 1, 0.0, 0.5),))])["batch"]
    Pairwise().evaluate(rewards, tie).losses.sum().backward()
    assert rewards.grad.tolist() == pytest.approx([1 / (1 + math.exp(-2)) - 0.5, 0.5 - 1 / (1 + math.exp(-2))])


@pytest.mark.parametrize("preference", [0.49, 1.01, math.nan])
def test_the_better_row_is_the_better_one(preference):
    with pytest.raises(DataError, match=r"must be from 0\.5, a tie, to 1"):
        PreferenceLabel(0, 1, preference=preference)


def test_regression_learns_shifted_and_scaled_targets():
    objective = Regression(mean=10.0, deviation=2.0)
    inputs = objective.inputs([Grade([3, 9], 14.0), Grade([1, 9], 8.0)])
    assert inputs["labels"].tolist() == [2, -1]
    assert learner(objective)(**inputs)["loss"].item() == pytest.approx((1 + 4) / 2)


def test_the_whole_step_divides_not_the_pass():
    pairs = [comparison(3, 1), comparison(0, 1), comparison(2, 5)]
    whole = passed(Pairwise(), pairs)["loss"]
    parts = [passed(Pairwise(), part, num_items_in_batch=torch.tensor(3))["loss"] for part in (pairs[:1], pairs[1:])]
    assert sum(parts).item() == pytest.approx(whole.item())


def test_watched_numbers_add_up_and_are_taken_once():
    objective = Pairwise()
    model = learner(objective).train()
    model(**objective.inputs([comparison(3, 1), comparison(0, 1)]))
    model(**objective.inputs([comparison(2, 2), comparison(7, 2, labels=((0, 1, 0.0, 0.5),))]))
    watched = model.take_metrics().numbers()
    assert watched["accuracy"] == pytest.approx(0.5)  # right, wrong, half; the tie of labels counts not
    assert watched["margin"] == pytest.approx((2 - 1 + 0) / 3)
    assert watched["mean_reward"] == pytest.approx(18 / 8)
    assert model.take_metrics().numbers() == {}
    model.eval()
    model(**objective.inputs([comparison(3, 1)]))
    assert model.take_metrics().numbers() == {}


def test_a_loss_that_is_not_finite_is_refused():
    class Broken(Reader):
        def rewards(self, groups):
            return super().rewards(groups) * torch.nan

    with pytest.raises(TrainingError, match="the loss is nan"):
        learner(Pairwise(), Broken())(**Pairwise().inputs([comparison(1, 2)]))


def test_dropout_stays_off_in_training_mode():
    model = tiny_scalar_model("gpt_neox").train()
    reader = make_reader(model, role="model", pad_token_id=257)
    whole = LearningModel(model, reader, Pairwise()).train()
    assert whole.training
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
    pair = Comparison(([5, 6, 7], [5, 8]), (PreferenceLabel(0, 1),))
    losses = [whole(**Pairwise().inputs([pair]))["loss"] for _ in range(2)]
    assert torch.equal(*losses)


def test_frozen_weights_are_no_part_of_a_checkpoint():
    model = tiny_scalar_model()
    model.base_model.requires_grad_(False)
    whole = LearningModel(model, Reader(), Pairwise())
    assert list(whole.state_dict()) == ["model.score.weight"]
    missing = whole.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert set(missing) == set(whole._keys_to_ignore_on_save)
