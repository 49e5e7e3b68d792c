"""The same with nearstep: the names of the settings are the draft's."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nearstep import DecoupledPPOConfig, PPOTrainer

config = DecoupledPPOConfig(
    output_dir="decoupled",
    learning_rate=3e-6,
    vf_learning_rate=1e-4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    total_episodes=16,
    num_ppo_epochs=4,
    num_vf_epochs=2,
    vf_update_frequency=2,
    response_length=12,
)
trainer = PPOTrainer(
    args=config,
    processing_class=AutoTokenizer.from_pretrained("policy"),
    model=AutoModelForCausalLM.from_pretrained("policy"),
    reward_model=AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1),
    train_dataset=load_dataset("json", data_files="prompts.jsonl", split="train"),
)
trainer.train()
