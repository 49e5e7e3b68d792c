"""What one of several processes does in test_two_processes: one training in float64, its weights to a file."""

from pathlib import Path

import torch

from tests.reward_modeling.world import pairs, trainer
from tests.tiny import tiny_causal_lm

torch.set_num_threads(1)


def main(where: Path | str, rows: int | str) -> None:
    """24 pairs to learn from, 12 in each step over all processes."""
    folder = Path(where)
    trained = trainer(
        folder, pairs(24), model=tiny_causal_lm("gpt2", dtype=torch.float64), dtype="float64", num_train_epochs=2.0,
        per_device_train_batch_size=int(rows), held_out_share=0.0, eval_dataset=pairs(7, seed=1), eval_steps=2,
    )  # fmt: skip
    trained.train()
    if trained.run.backend.rank == 0:
        torch.save(trained.model.state_dict(), folder / "weights.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
