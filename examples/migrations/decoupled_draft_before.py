"""The draft of decoupled PPO for TRL, which never was in a release."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.dppo import DPPOConfig, DPPOTrainer

tokenizer = AutoTokenizer.from_pretrained("policy", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained("policy")
ref_policy = AutoModelForCausalLM.from_pretrained("policy")
value_model = AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1)
reward_model = AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1)
dataset = load_dataset("json", data_files="prompts.jsonl", split="train")
dataset = dataset.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"])
config = DPPOConfig(
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
trainer = DPPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=ref_policy,
    reward_model=reward_model,
    value_model=value_model,
    train_dataset=dataset,
)
trainer.train()
