"""Checkpoints in float16, bfloat16 and float32 learn by the same small steps, in every role that learns."""

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.lanes import slow
from tests.reward_modeling.world import trainer as reward_trainer
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, small_recipe

RATE, STEPS = 3e-6, 16
BOUND = 1.1 * STEPS * RATE  # Adam moves no weight by much more than its rate in a step
TYPES = (torch.float32, torch.bfloat16, torch.float16)
RUN = {"learning_rate": RATE, "total_episodes": 16, "num_ppo_epochs": 8, "log_rollouts": False}


def folder_of(model, path):
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "as_folder", "optim"),
    [
        *(slow((dtype, False, "adamw_torch")) for dtype in TYPES),
        (torch.float16, True, "adamw_torch"),
        slow((torch.bfloat16, False, "adamw_torch_fused")),
    ],
)
def test_no_weight_of_policy_or_critic_moves_further_than_adam_may(dtype, as_folder, optim, tmp_path):
    policy, critic = (make(layers=1, dtype=dtype) for make in (tiny_causal_lm, tiny_scalar_model))
    parts = {"model": policy, "value_model": critic}
    if as_folder:
        parts = {role: folder_of(model, tmp_path / role) for role, model in parts.items()}
    recipe = small_recipe(tmp_path / "run", parts=parts, optim=optim, vf_learning_rate=RATE, **RUN)
    learners = (recipe.learners.policy, recipe.learners.critic)
    before = [[weight.detach().clone() for weight in learner.parameters] for learner in learners]
    train(recipe, State())
    for learner, then in zip(learners, before, strict=True):
        assert all(weight.dtype == torch.float32 for weight in learner.parameters)
        pairs = zip(learner.parameters, then, strict=True)
        moved = torch.cat([(now - was).detach().abs().flatten() for now, was in pairs])
        assert moved.max() <= BOUND
        assert (moved > 0).float().mean() > 0.5  # the others are embeddings of tokens that nobody wrote


@pytest.mark.slow
def test_a_float16_checkpoint_learns_bit_for_bit_what_its_float32_copy_learns(tmp_path):
    learnt = []
    for as_float32 in (False, True):
        policy, critic = (make(layers=1, dtype=torch.float16) for make in (tiny_causal_lm, tiny_scalar_model))
        parts = {"model": policy, "value_model": critic}
        if as_float32:
            parts = {role: model.float() for role, model in parts.items()}
        recipe = small_recipe(tmp_path / str(as_float32), parts=parts, learning_rate=1e-2, log_rollouts=False)
        train(recipe, State())
        learnt.append([*policy.parameters(), *critic.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*learnt, strict=True))


@pytest.mark.parametrize("dtype", [slow(dtype) for dtype in TYPES])
def test_reward_models_learn_by_the_same_steps(dtype, tmp_path):
    made = reward_trainer(
        tmp_path, model=tiny_causal_lm(layers=1, dtype=dtype), learning_rate=RATE, max_steps=STEPS, normalize="none",
        lr_scheduler_type="constant", warmup_steps=0,
    )  # fmt: skip
    before = {name: weight.detach().float().clone() for name, weight in made.model.named_parameters()}
    made.train()
    assert made.model.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    moved, rounding = [], []
    for name, weight in made.model.named_parameters():
        moved.append((weight.detach().float() - before[name]).abs().flatten())
        # A bfloat16 weight follows its master in steps of its own, 1/256 of it.
        rounding.append(before[name].abs().flatten() / 256 if dtype == torch.bfloat16 else torch.zeros(weight.numel()))
    assert (torch.cat(moved) <= BOUND + torch.cat(rounding)).all()
    assert (torch.cat(moved) > 0).any()


def test_a_reference_that_overflows_in_its_own_type_is_named(tmp_path):
    """On a CPU it is read in float32, so it is given its type back, as a GPU leaves it."""
    reference = tiny_causal_lm(dtype=torch.float16)
    with torch.no_grad():
        reference.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    recipe = small_recipe(tmp_path, parts={"model": tiny_causal_lm(dtype=torch.float16), "ref_model": reference})
    recipe.models.reference.policy.model.half()
    _, rollout, scores = play(recipe)
    with pytest.raises(
        TrainingError, match=r"ref_model \(torch\.float16\) gives log-probs that are not finite.*65,504"
    ):
        make_experience(rollout, scores, recipe)
