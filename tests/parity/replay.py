"""How a rollout that TRL recorded is played through nearstep: same weights, tokens, log-probs and scores."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nearstep import PPOConfig
from nearstep.algorithm.losses import clipped_surrogate, probability_ratio
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.metrics import Metrics
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import make_experience
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.training.update import update
from nearstep.types import Experience, Rollout, Scores
from tests.parity.record import world
from tests.parity.recordings import below

TRL_TEMPERATURE = 1.0 + 1e-7  # TRL adds this to the temperature it is given


@dataclass(frozen=True)
class Step:
    """One optimizer step: what TRL calls pg_loss, the mean of its absolute values, and vf_loss."""

    pg_loss: float
    abs_pg_loss: float
    vf_loss: float


def recorded_steps(recording: dict[str, Tensor], number: int) -> list[Step]:
    """TRL's steps of an update."""
    steps = []
    while f"{number}/{len(steps)}/pg_loss" in recording:
        found = below(recording, f"{number}/{len(steps)}/")
        steps.append(Step(*(float(found[name]) for name in ("pg_loss", "abs_pg_loss", "vf_loss"))))
    return steps


def recorded_updates(recording: dict[str, Tensor]) -> int:
    """How many updates TRL made."""
    return sum(name.endswith("/query_responses") for name in recording)


def recipe_like(recording: dict[str, Tensor], settings: dict[str, object], folder: Path) -> Recipe:
    """nearstep set up as TRL was, on the weights that TRL began with."""
    rows, width = len(recording["1/scores"]), recording["0/weights/policy/lm_head.weight"].shape[1]
    dtype = recording["0/weights/policy/lm_head.weight"].dtype
    config = PPOConfig(
        output_dir=str(folder), total_episodes=rows * recorded_updates(recording), per_device_train_batch_size=rows,
        response_length=world.RESPONSE_LENGTH, temperature=TRL_TEMPERATURE, score_position="after_eos",
        max_grad_norm=None, lr_scheduler_type="linear", num_sample_generations=0, use_cpu=True, **settings,
    )  # fmt: skip
    policy, reference = (world.causal_model(width, seed=0, dtype=dtype) for _ in range(2))
    critic = world.scalar_model(width, seed=0, dtype=dtype)
    for role, model in (("policy", policy), ("reference", reference), ("value", critic)):
        model.load_state_dict(below(recording, f"0/weights/{role}/"))
    parts = RunInputs(
        tokenizer=world.tokenizer(), model=policy, ref_model=reference, value_model=critic, reward_funcs=(no_judge,),
        train_dataset=[{"input_ids": ids} for ids in world.prompts(rows)],
    )  # fmt: skip
    return assemble(config, parts)


def no_judge(completion_ids: list[list[int]], **columns: object) -> list[float]:
    """A reward function that is never asked."""
    raise AssertionError("scores come from the recording")


def recorded_rollout(recording: dict[str, Tensor], number: int) -> tuple[Rollout, Scores]:
    """What TRL sampled in an update, without its padding, and what its reward model said."""
    found = below(recording, f"{number}/")
    context = int(found["context_length"])
    is_action = torch.zeros_like(found["query_responses"], dtype=torch.bool)
    is_action[:, context:] = ~found["padding_mask"]
    real = found["query_responses"] != world.PAD
    ends = found["sequence_lengths"][:, None] + context
    finished = found["query_responses"].gather(1, ends).squeeze(1) == world.EOS
    rollout = Rollout(
        tokens=found["query_responses"][real],
        is_action=is_action[real],
        row_lengths=real.sum(1),
        logprobs=found["logprobs"][~found["padding_mask"]],
        finished=finished,
        policy_version=torch.full((len(real),), number),
    )
    return rollout, Scores(found["raw_scores"])


def recorded_width(recording: dict[str, Tensor], number: int) -> int:
    """Length of the longest response of an update, which TRL takes for the limit."""
    return recording[f"{number}/padding_mask"].shape[1]


def within(recipe: Recipe, response_length: int) -> Recipe:
    """The same recipe with another limit of the response.

    TRL pays a row on its last token if that is the last column of the batch. Where every row of a batch ends itself
    early, these are the longest rows of the batch, though they were not cut.
    """
    return replace(recipe, config=replace(recipe.config, response_length=response_length))


def replay(recording: dict[str, Tensor], number: int, recipe: Recipe) -> tuple[Experience, list[Step]]:
    """nearstep's experience and optimizer steps on the rollout of an update; the recipe's weights move."""
    rollout, scores = recorded_rollout(recording, number)
    experience = make_experience(rollout, scores, within(recipe, recorded_width(recording, number)))
    steps = []
    for _ in range(recipe.config.num_ppo_epochs):
        absolute = abs_pg_loss(experience, recipe)
        metrics, _ = update(experience, [Phase(number, epochs=1, policy=True, critic=True)], recipe)
        steps.append(Step(mean(metrics, "loss/policy_avg"), absolute, mean(metrics, "loss/value_avg")))
    recipe.learners.end_update()
    return experience, steps


@torch.no_grad()
def abs_pg_loss(experience: Experience, recipe: Recipe) -> float:
    """Mean of max(|A·r|, |A·clip r|) over the actions, as the weights stand."""
    now = rollout_logprobs(recipe.models.policy, experience.rollout, recipe.sampling).sampled
    ratio = probability_ratio(now, experience.old_logprobs)
    range_ = recipe.config.cliprange
    return float(clipped_surrogate(ratio, -experience.advantages.abs(), low=range_, high=range_).mean())


def mean(metrics: Metrics, name: str) -> float:
    """A metric that is a mean."""
    metric = metrics.by_name[name]
    return float(metric.sum / metric.count)


def networks(recipe: Recipe) -> dict[str, nn.Module]:
    """What trains, by the name of its role in a recording."""
    return {"policy": recipe.models.policy.model, "value": recipe.models.critic.model}
