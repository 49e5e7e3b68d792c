"""What one of several processes does in test_two_processes: a whole run in float64, weights and numbers to a file."""

import sys
from pathlib import Path

import torch

from nearstep.training.loop import train
from nearstep.training.state import State
from tests.training.runs import small_recipe

torch.set_num_threads(1)


def main(folder: Path) -> None:
    """Five updates with partial minibatches: nine episodes over the processes, four minibatches."""
    recipe = small_recipe(
        folder, dtype=torch.float64, batch_size=9, num_mini_batches=4, total_episodes=27, whiten_rewards=True,
        per_device_train_batch_size=2, response_length=8, num_generations=3,
    )  # fmt: skip
    state = State()
    with recipe.report.reporter as reporter:
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, state)
        recipe.checkpoint.save_final(state)
        reporter.end()
    models = {"policy": recipe.models.policy.model, "value": recipe.models.critic.model}
    if recipe.backend.rank == 0:
        torch.save({name: model.state_dict() for name, model in models.items()}, folder / "weights.pt")
    recipe.backend.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
