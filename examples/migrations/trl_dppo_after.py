"""The same with nearstep. With `advantage="gae"`, the default, it has a critic."""

from nearstep import DivergencePPOConfig, PPOTrainer


def short(completions, **columns):
    return [-len(text) / 10 for text in completions]


config = DivergencePPOConfig(
    model_name_or_path="policy",
    dataset_name="prompts.jsonl",
    output_dir="dppo",
    trust_region="binary_tv",
    divergence_low=0.15,
    divergence_high=0.15,
    advantage="group_normalized",
    num_generations=4,
    num_ppo_epochs=1,
    response_length=12,
    per_device_train_batch_size=8,
    learning_rate=1e-6,
    num_train_epochs=1,
)
trainer = PPOTrainer(config, reward_funcs=short)
trainer.train()
