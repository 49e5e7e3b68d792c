"""The same with nearstep: text goes in as it is; the reference and the critic are made from what they were here."""

from nearstep import PPOTrainer, TRLParityConfig

config = TRLParityConfig(
    model_name_or_path="policy",
    reward_model_path="reward",
    dataset_name="prompts.jsonl",
    output_dir="ppo",
    learning_rate=3e-6,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    total_episodes=16,
    response_length=12,
    missing_eos_penalty=1.0,
)
trainer = PPOTrainer(config)
trainer.train()
