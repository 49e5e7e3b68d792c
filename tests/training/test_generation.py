"""An engine that records log-probs of 0 is refused, unless the policy is as certain as that."""

import dataclasses

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.training.generation import generate
from tests.training.runs import small_recipe


class RecordsNothing:
    """Samples as the engine inside, and says 0 of every token."""

    def __init__(self, inner):
        self.inner = inner
        self.capabilities, self.load, self.close = inner.capabilities, inner.load, inner.close

    def generate(self, prompts, settings, row_ended=None):
        rollout = self.inner.generate(prompts, settings, row_ended)
        return dataclasses.replace(rollout, logprobs=torch.zeros_like(rollout.logprobs))


def test_it_is_refused_where_the_policy_knows_better(tmp_path):
    recipe = small_recipe(tmp_path)
    blind = dataclasses.replace(recipe, engine=RecordsNothing(recipe.engine))
    prompts = recipe.prompts.batch(1)
    generate(prompts, recipe, version=1)
    with pytest.raises(TrainingError, match=r"RecordsNothing recorded a log-prob of 0 for every token .* gives those"):
        generate(prompts, blind, version=1)


def test_and_taken_where_the_policy_has_one_token_left(tmp_path):
    recipe = small_recipe(tmp_path)
    head = recipe.models.policy.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e6)  # logits that lie far apart
    rollout = generate(recipe.prompts.batch(1), recipe, version=1)
    assert len(rollout.logprobs) >= 16
    assert not rollout.logprobs.any()
