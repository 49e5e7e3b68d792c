"""What one of several processes does in test_two_processes: whole runs in float64, weights and numbers to files."""

import sys
from pathlib import Path

import torch

from nearstep.training.loop import train
from nearstep.training.state import State
from tests.tiny import tiny_causal_lm
from tests.training.runs import small_recipe

torch.set_num_threads(1)


SHARED = {
    "dtype": torch.float64, "batch_size": 9, "num_mini_batches": 4, "total_episodes": 27,
    "per_device_train_batch_size": 2,
    "response_length": 8, "num_generations": 3,
}  # fmt: skip


def main(folder: Path) -> None:
    """Nine episodes over the processes in four minibatches: a critic, one on the policy's trunk, shared groups."""
    play(folder, whiten_rewards=True)
    play(folder / "one_trunk", critic_trunk="shared", vf_warmup_updates=1)
    play(folder / "groups", advantage="leave_one_out", trust_region="topk_tv", whiten_advantages=True)
    dist_close()


def play(folder: Path, **changes) -> None:
    """Three updates, with all that a run writes."""
    # Processes pack rows otherwise than one does; Llama's norms, which compute in float32, would round otherwise.
    model = tiny_causal_lm("gpt2", dtype=torch.float64)
    recipe = small_recipe(folder, parts={"model": model}, **SHARED, **changes)
    state = State()
    with recipe.report.reporter as reporter:
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, state)
        recipe.checkpoint.save_final(state)
        reporter.end()
    models = {"policy": recipe.models.policy.model.state_dict()}
    if recipe.models.critic is not None:
        models["value"] = recipe.models.critic.model.state_dict()
    if recipe.backend.rank == 0:
        torch.save(models, folder / "weights.pt")


def dist_close() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
