"""What one of several processes does in test_one_base: four roles on one base, whole on each; weights to a file."""

from pathlib import Path

import torch

from nearstep.training.loop import train
from nearstep.training.state import State
from tests.training.test_one_base import TARGETS, recipe_of

torch.set_num_threads(1)
FAMILY = "gpt_neox"  # computes in float64 throughout; the norms of Llama do not
SETTINGS = {
    "dtype": "float64", "batch_size": 9, "num_mini_batches": 3, "total_episodes": 27, "response_length": 8,
    "per_device_train_batch_size": 2, "gradient_checkpointing": True, "learning_rate": 3e-3,
    "lora_target_modules": TARGETS[FAMILY],
}  # fmt: skip


def main(models: str | Path, folder: str | Path) -> None:
    """Train three updates, and let rank 0 write what policy and critic have learned."""
    recipe = recipe_of(Path(folder), Path(models), **SETTINGS)
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    if recipe.backend.rank == 0:
        networks = {"policy": recipe.models.policy.model, "value": recipe.models.critic.model}
        states = {
            f"{role} {name}": weight.detach()
            for role, network in networks.items()
            for name, weight in network.named_parameters()
        }
        torch.save(states, Path(folder) / "weights.pt")
