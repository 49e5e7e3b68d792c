"""The numbers of a traced row are those that train: its gradient, put together, is the first step's."""

import pytest
import torch

from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import make_experience
from nearstep.training.generation import generate
from nearstep.training.row_trace import trace_row
from nearstep.training.update import improve
from tests.training.runs import small_recipe


def played(recipe):
    """The experience of the first update."""
    prompts = recipe.prompts.batch(1)
    rollout = generate(prompts, recipe, version=1)
    return rollout, make_experience(rollout, recipe.rewards(prompts, rollout), recipe)


@pytest.mark.parametrize("changed", [{}, {"trust_region": "topk_tv", "divergence_top_k": 3}])
def test_the_gradients_of_all_rows_are_those_of_a_step(tmp_path, changed):
    recipe = small_recipe(tmp_path, dtype=torch.float64, max_grad_norm=None, optim="sgd", learning_rate=0.0, **changed)
    rollout, experience = played(recipe)
    rows = [trace_row(experience, row, recipe) for row in range(len(experience))]
    traced = torch.tensor([token.gradient for row in rows for token in row], dtype=torch.float64)
    now = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling).sampled
    (traced * now).sum().backward()
    weights = recipe.learners.policy.parameters
    by_hand = [weight.grad.clone() for weight in weights]
    improve(experience, recipe.schedule.phases(1)[0], recipe, first=True)
    for expected, weight in zip(by_hand, weights, strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-10, rtol=1e-6)


def test_a_row_shows_what_the_run_recorded(tmp_path):
    recipe = small_recipe(tmp_path)
    rollout, experience = played(recipe)
    tokens = trace_row(experience, 2, recipe)
    begin = int(rollout.action_counts[:2].sum())
    assert [token.token for token in tokens] == rollout.completion_ids()[2]
    for place, token in enumerate(tokens, start=begin):
        assert token.sampled_logprob == float(rollout.logprobs[place])
        assert token.value == float(experience.values[place])
        assert token.whitened_advantage == float(experience.advantages[place])
        assert token.ratio == pytest.approx(1, abs=1e-5)
        assert token.region_weight == 1
        assert token.gradient == pytest.approx(-token.whitened_advantage / len(rollout.logprobs), rel=1e-4)
