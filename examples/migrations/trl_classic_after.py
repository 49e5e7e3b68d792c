"""TRL up to 0.11: a loop of one's own around `step`."""

import torch
from datasets import load_dataset
from transformers import AutoTokenizer

from nearstep.classic import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)

config = PPOConfig(
    model_name="policy",
    learning_rate=1.41e-5,
    batch_size=8,
    mini_batch_size=4,
    ppo_epochs=4,
    init_kl_coef=0.2,
    target=6,
)
tokenizer = AutoTokenizer.from_pretrained(config.model_name)
dataset = load_dataset("json", data_files="prompts.jsonl", split="train")
dataset = dataset.map(lambda row: {"query": row["prompt"], "input_ids": tokenizer(row["prompt"])["input_ids"]})


def collate(rows):
    return {"query": [row["query"] for row in rows], "input_ids": [torch.tensor(row["input_ids"]) for row in rows]}


model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
ref_model = create_reference_model(model)
trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset=dataset, data_collator=collate)
lengths = LengthSampler(4, 12)
sampling = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": tokenizer.eos_token_id}

for batch in trainer.dataloader:
    queries = batch["input_ids"]
    responses = trainer.generate(queries, return_prompt=False, length_sampler=lengths, **sampling)
    batch["response"] = [tokenizer.decode(response) for response in responses]
    rewards = [torch.tensor(-float(len(text))) for text in batch["response"]]
    stats = trainer.step(queries, responses, rewards)
    trainer.log_stats(stats, batch, rewards)
    print(f"score {stats['ppo/mean_scores']:.2f}, KL {stats['objective/kl']:.3f}")

trainer.save_pretrained("trained")
