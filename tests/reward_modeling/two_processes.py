"""What one of several processes does in test_two_processes: one training in float64, its weights to a file."""

import sys
from pathlib import Path

import torch

from tests.reward_modeling.world import pairs, trainer
from tests.tiny import tiny_causal_lm

torch.set_num_threads(1)


def main(folder: Path, rows: int) -> None:
    """24 pairs to learn from, 12 in each step over all processes."""
    trained = trainer(
        folder, pairs(24), model=tiny_causal_lm("gpt2", dtype=torch.float64), dtype="float64", num_train_epochs=2.0,
        per_device_train_batch_size=rows, held_out_share=0.0, eval_dataset=pairs(7, seed=1), eval_steps=2,
    )  # fmt: skip
    trained.train()
    if trained.run.backend.rank == 0:
        torch.save(trained.model.state_dict(), folder / "weights.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
