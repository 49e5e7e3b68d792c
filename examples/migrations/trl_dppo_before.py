"""TRL 1.7 to 1.8: divergence PPO, without a critic."""

from datasets import load_dataset
from trl.experimental.dppo import DPPOConfig, DPPOTrainer


def short(completions, **columns):
    return [-len(text) / 10 for text in completions]


config = DPPOConfig(
    output_dir="dppo",
    divergence_type="binary_tv",
    epsilon=0.15,
    epsilon_high=0.15,
    num_generations=4,
    max_completion_length=12,
    per_device_train_batch_size=8,
    learning_rate=1e-6,
    num_train_epochs=1,
)
trainer = DPPOTrainer(
    model="policy",
    reward_funcs=short,
    args=config,
    train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
)
trainer.train()
