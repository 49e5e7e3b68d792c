"""What each of two processes does in the test of one generation process for both."""

from pathlib import Path

from nearstep import PPOTrainer
from tests.rewards.light import low_ids
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import settings

ROWS = [{"prompt": f"{number:03}"} for number in range(96)]


def main(folder: str, episodes: str) -> None:
    """Updates of eight rows, as many as there are episodes for, from the newest checkpoint on."""
    config = settings(
        Path(folder), max_staleness=2, total_episodes=int(episodes), save_steps=1, resume="auto", batch_size=8,
        per_device_train_batch_size=4,
    )  # fmt: skip
    PPOTrainer(config, byte_tokenizer(), tiny_causal_lm(), train_dataset=ROWS, reward_funcs=low_ids).train()
