"""Small whole runs for the tests: tiny models, a byte tokenizer, a reward function that is easy to learn."""

from pathlib import Path

import torch

from nearstep import PPOConfig
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from tests.rewards.light import low_ids
from tests.tiny import byte_tokenizer, tiny_causal_lm

PROMPTS = ["a", "bc", "def", "ghij", "klmno", "pq", "r", "stuvwx"]


def settings(folder: Path, **changes) -> PPOConfig:
    """Eight episodes an update, three updates."""
    defaults = {
        "output_dir": str(folder), "total_episodes": 24, "per_device_train_batch_size": 8, "response_length": 6,
        "learning_rate": 1e-3, "num_ppo_epochs": 2, "num_sample_generations": 0, "use_cpu": True, "temperature": 1.0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    return PPOConfig(**{**defaults, **changes})


def learning(folder: Path, **changes) -> PPOConfig:
    """Eighteen updates, at a rate at which `learner` comes to give low ids nearly always."""
    defaults = {
        "total_episodes": 64 * 18, "per_device_train_batch_size": 64, "learning_rate": 1e-2, "kl_coef": 0.0,
        "num_ppo_epochs": 3, "log_rollouts": False,
    }  # fmt: skip
    return settings(folder, **{**defaults, **changes})


def learner():
    """The smallest policy that learns: one layer."""
    return tiny_causal_lm(layers=1)


def small_recipe(folder: Path, *, dtype=torch.float32, parts=None, **changes):
    """A recipe over tiny models."""
    given = {
        "tokenizer": byte_tokenizer(),
        "model": tiny_causal_lm(dtype=dtype),
        "reward_funcs": (low_ids,),
        "train_dataset": [{"prompt": text} for text in PROMPTS],
        **(parts or {}),
    }
    return assemble(settings(folder, **changes), RunInputs(**given))


def play(recipe, update=1):
    """One rollout with its scores."""
    prompts = recipe.prompts.batch(update)
    recipe.engine.load(recipe.models.policy, version=update)
    rollout = recipe.engine.generate(prompts, recipe.generation)
    return prompts, rollout, recipe.rewards(prompts, rollout)
