"""How a rollout that TRL's DPPOTrainer recorded is played through nearstep, which trains the policy alone here."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nearstep import PPOConfig
from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.trust_regions import TokenLogprobs
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import make_experience
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.training.update import update
from nearstep.types import Experience, Rollout, Scores, TopLogprobs
from tests.parity.record import world
from tests.parity.record.scenarios import DIVERGENCE
from tests.parity.recordings import below
from tests.parity.replay import mean, no_judge
from tests.regions import weight


@dataclass(frozen=True)
class RegionStep:
    """One optimizer step: TRL's loss, and the share of tokens without gradient.

    `scale` is the mean of |A·r·log π|, which the loss is small against where its terms cancel.
    """

    loss: float
    dropped: float
    scale: float = 1.0


def recipe_for(recording: dict[str, Tensor], divergence: str, folder: Path) -> Recipe:
    """nearstep set up as TRL was, on the weights that TRL began with."""
    head = recording["0/weights/policy/lm_head.weight"]
    rows, (_, width) = len(recording["1/completion_ids"]), head.shape
    config = PPOConfig(
        output_dir=str(folder), total_episodes=rows, per_device_train_batch_size=rows, temperature=1.0,
        response_length=world.RESPONSE_LENGTH, trust_region=divergence, max_grad_norm=None,
        lr_scheduler_type="constant", num_sample_generations=0, use_cpu=True, **top_only(divergence),
    )  # fmt: skip
    policy = world.causal_model(width, seed=0, dtype=head.dtype)
    policy.load_state_dict(below(recording, "0/weights/policy/"))
    parts = RunInputs(
        tokenizer=world.tokenizer(), model=policy, value_model=world.scalar_model(width, seed=0, dtype=head.dtype),
        reward_funcs=(no_judge,), train_dataset=[{"input_ids": ids} for ids in world.prompts(rows)],
    )  # fmt: skip
    return assemble(config, parts)


def top_only(divergence: str) -> dict[str, object]:
    """The settings of the run; the number of top tokens only where it means something."""
    return {k: v for k, v in DIVERGENCE.items() if k != "divergence_top_k" or divergence.startswith("topk")}


def experience_of(recording: dict[str, Tensor], number: int, recipe: Recipe) -> Experience:
    """What TRL sampled, without padding, and its advantages in place of ours."""
    found = below(recording, f"{number}/")
    valid = found["completion_mask"].bool()
    real = torch.cat([found["prompt_mask"].bool(), valid], dim=1)
    is_action = torch.cat([torch.zeros_like(found["prompt_mask"], dtype=torch.bool), valid], dim=1)
    old, rows = found["sampling_per_token_logps"][valid], len(valid)
    top = None
    if "sampling_topk_token_ids" in found:
        top = TopLogprobs(found["sampling_topk_token_ids"][valid], found["sampling_topk_logps"][valid])
    rollout = Rollout(
        tokens=torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)[real],
        is_action=is_action[real],
        row_lengths=real.sum(1),
        logprobs=old,
        finished=torch.ones(rows, dtype=torch.bool),
        policy_version=torch.full((rows,), number),
        top=top,
    )
    experience = make_experience(rollout, Scores(torch.zeros(rows)), recipe)
    return replace(experience, advantages=found["advantages"].repeat_interleave(valid.sum(1)))


def replay_region(recording: dict[str, Tensor], number: int, recipe: Recipe) -> list[RegionStep]:
    """nearstep's optimizer steps on the rollout of an update; the recipe's weights move."""
    experience = experience_of(recording, number, recipe)
    steps = []
    for _ in range(recipe.config.num_ppo_epochs):
        loss, scale = trl_loss(experience, recipe)
        metrics, _ = update(experience, [Phase(number, epochs=1, policy=True, critic=False)], recipe)
        steps.append(RegionStep(loss, mean(metrics, "policy/clipfrac_avg"), scale))
    return steps


@torch.no_grad()
def trl_loss(experience: Experience, recipe: Recipe) -> tuple[float, float]:
    """TRL's loss, −A·min(r, C)·M·log π, which has the gradient of ours and another value; and its scale."""
    now = rollout_logprobs(recipe.models.policy, experience.rollout, recipe.sampling)
    top = experience.rollout.top
    old = TokenLogprobs(experience.old_logprobs, None if top is None else top.logprobs)
    kept = weight(recipe.trust_region, TokenLogprobs(now.sampled, now.top), old, experience.advantages)
    ratio = probability_ratio(now.sampled, old.sampled).clamp(max=recipe.ratio_limit)
    terms = -experience.advantages * ratio * now.sampled
    return float((terms * kept).mean()), float(terms.abs().mean())


def recorded_region_steps(recording: dict[str, Tensor], number: int) -> list[RegionStep]:
    """TRL's steps of an update."""
    steps = range(DIVERGENCE["num_ppo_epochs"])
    return [RegionStep(*(float(recording[f"{number}/{step}/{n}"]) for n in ("loss", "dropped"))) for step in steps]
