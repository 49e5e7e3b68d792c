"""TRL 0.12 to 1.12: the trainer with four models (PPOv2)."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

tokenizer = AutoTokenizer.from_pretrained("policy", padding_side="left")
tokenizer.add_special_tokens({"pad_token": "[PAD]"})
policy = AutoModelForCausalLM.from_pretrained("policy")
ref_policy = AutoModelForCausalLM.from_pretrained("policy")
value_model = AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1)
reward_model = AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1)
dataset = load_dataset("json", data_files="prompts.jsonl", split="train")


def tokenize(rows):
    return {"input_ids": tokenizer(rows["prompt"], padding=False)["input_ids"]}


dataset = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
config = PPOConfig(
    output_dir="ppo",
    learning_rate=3e-6,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    total_episodes=16,
    response_length=12,
    stop_token="eos",
    missing_eos_penalty=1.0,
)
trainer = PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=ref_policy,
    reward_model=reward_model,
    value_model=value_model,
    train_dataset=dataset,
)
trainer.train()
