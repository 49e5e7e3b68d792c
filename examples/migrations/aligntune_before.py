"""AlignTune: a trainer in one call."""

from aligntune.core.backend_factory import create_rl_trainer

trainer = create_rl_trainer(
    model_name="policy",
    dataset_name="prompts.jsonl",
    algorithm="ppo",
    backend="trl",
    reward_functions=["helpfulness", "safety"],
    reward_function_weights=[0.6, 0.4],
    num_epochs=1,
    batch_size=4,
    learning_rate=1e-6,
    response_length=12,
)
trainer.train()
