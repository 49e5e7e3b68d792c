"""The reference that a run makes itself is the policy as it starts: KL 0, whatever adapters the policy came with."""

import copy

import peft
import pytest
import torch

from nearstep.training.experience import make_experience
from nearstep.training.frozen_passes import reference_logprobs
from nearstep.training.schedules import Phase
from nearstep.training.update import update
from tests.lanes import sampled
from tests.tiny import tiny_causal_lm
from tests.training.runs import play, small_recipe

COPIED = "a copy of its adapters on the same frozen weights"
OFF = "with its adapters off"
WITHOUT_CRITIC = {"advantage": "leave_one_out", "num_generations": 4}


def lora(**changes):
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"], **changes})


def adapted(**changes):
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_causal_lm(), lora(**changes))


def several():
    model = adapted(init_lora_weights=False)
    model.add_adapter("other", lora(r=2, init_lora_weights=False))
    return model


def tied():
    model = tiny_causal_lm()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def trained_tokens():
    """Trained rows of the embedding, of a and b, that prompts contain and no probe."""
    model = adapted(trainable_token_indices=[64, 65])
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "trainable_tokens_delta" in name:
                weights.add_(5)
    return model


GIVEN = {
    "a plain model": tiny_causal_lm,
    "a tied model": tied,
    "a trained adapter": lambda: adapted(init_lora_weights=False),
    "a fresh adapter": adapted,
    "dropout": lambda: adapted(init_lora_weights=False, lora_dropout=0.5).train(),
    "DoRA": lambda: adapted(init_lora_weights=False, use_dora=True),
    "a head trained whole": lambda: adapted(init_lora_weights=False, modules_to_save=["lm_head"]),
    "several adapters": several,
    "trained tokens": trained_tokens,
}


def kl_at_start(recipe):
    _, rollout, _ = play(recipe)
    return (rollout.logprobs - reference_logprobs(rollout, recipe)).abs().max()


@pytest.mark.parametrize("given", sampled(GIVEN, 3))
def test_the_reference_is_the_policy_as_it_starts_and_stays_it(given, tmp_path):
    model = GIVEN[given]()
    recipe = small_recipe(tmp_path, parts={"model": model}, learning_rate=1e-2, **WITHOUT_CRITIC)
    assert kl_at_start(recipe) < 1e-5
    _, rollout, scores = play(recipe)
    before = reference_logprobs(rollout, recipe)
    update(make_experience(rollout, scores, recipe), [Phase(2, 1, policy=True, critic=False)], recipe)
    _, moved, _ = play(recipe, update=2)
    assert (moved.logprobs - reference_logprobs(moved, recipe)).abs().max() > 1e-3
    assert torch.equal(reference_logprobs(rollout, recipe), before)


def test_frozen_weights_are_not_held_twice(tmp_path):
    model = adapted(init_lora_weights=False)
    recipe = small_recipe(tmp_path, parts={"model": model}, **WITHOUT_CRITIC)
    assert COPIED in recipe.introduction
    policy, reference = ({id(w) for w in m.parameters()} for m in (model, recipe.models.reference.policy.model))
    learning = {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert learning
    assert policy & reference == policy - learning


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, OFF),
        ({"use_dora": True}, OFF),
        ({"init_lora_weights": False}, COPIED),
        ({"init_lora_weights": "pissa"}, COPIED),
    ],
)
def test_adapters_of_the_run_are_switched_off_where_they_change_nothing_yet(changes, told, tmp_path):
    recipe = small_recipe(tmp_path, parts={"peft_config": lora(**changes)}, **WITHOUT_CRITIC)
    assert told in recipe.introduction
    assert kl_at_start(recipe) < 1e-4


def test_a_reference_that_was_given_is_taken_as_it_is(tmp_path):
    model = adapted(init_lora_weights=False)
    given = copy.deepcopy(model)
    recipe = small_recipe(tmp_path, parts={"model": model, "ref_model": given})
    assert recipe.models.reference.policy.model is given
    base = small_recipe(
        tmp_path / "other", parts={"model": adapted(init_lora_weights=False), "ref_model": tiny_causal_lm()}
    )
    assert kl_at_start(recipe) < 1e-5
    assert kl_at_start(base) > 0.1  # a base model on purpose
