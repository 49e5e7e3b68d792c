"""A reward model from 2,000 preference pairs whose ceiling is known, and PPO against it. Minutes on one CPU core.

Every word of a small world is worth something. People prefer one of two answers by a coin that the difference in worth
loads (Bradley and Terry), so nobody can agree with them more often than the worths themselves do: the ceiling.

Run it with `python examples/reward_model.py FOLDER`.
"""

import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from nearstep.cli.main import main as nearstep

DISHES = ("soup", "bread", "cake", "tea", "rice", "stew")
WORDS = tuple(f"{start}{end}" for start in ("bi", "do", "fu", "ga", "ke", "lo", "mi", "ra") for end in "nrstz")
LENGTHS = range(3, 8)  # words of an answer


@dataclass(frozen=True)
class World:
    """What every word is worth."""

    worths: dict[str, float]

    @staticmethod
    def of(seed: int) -> "World":
        rng = random.Random(seed)
        return World({word: rng.gauss(0.0, 1.6) for word in WORDS})

    def worth(self, answer: str) -> float:
        """The worth of an answer: of its words, so that a longer one is not better by that alone."""
        words = answer.split()
        return sum(self.worths[word] for word in words) / math.sqrt(max(1, len(words)))

    def pair(self, rng: random.Random) -> dict[str, str]:
        """Two answers in the order that the loaded coin gives them."""
        one, two = ("".join(f" {word}" for word in rng.choices(WORDS, k=rng.choice(LENGTHS))) for _ in range(2))
        if rng.random() > 1 / (1 + math.exp(self.worth(two) - self.worth(one))):
            one, two = two, one
        return {"prompt": prompt(rng), "chosen": one, "rejected": two}

    def ceiling(self, pairs: list[dict[str, str]]) -> float:
        """How often the worths themselves agree with the labels."""
        return sum(self.worth(pair["chosen"]) > self.worth(pair["rejected"]) for pair in pairs) / len(pairs)


def prompt(rng: random.Random) -> str:
    return f"taste of {rng.choice(DISHES)} :"


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_policy(folder: Path, rng: random.Random, steps: int) -> None:
    """A small language model that answers with any words, then EOS."""
    vocabulary = ["<eos>", "<pad>", "<unk>", "taste", "of", ":", *DISHES, *WORDS]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )
    torch.manual_seed(rng.randrange(2**31))
    policy: PreTrainedModel = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, bos_token_id=None,
            eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = [prompt(rng) + "".join(f" {word}" for word in rng.choices(WORDS, k=rng.choice(LENGTHS))) + " <eos>"
                 for _ in range(32)]  # fmt: skip
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        policy(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(*words: object) -> None:
    """One command of the command line."""
    if nearstep([str(word) for word in words]) != 0:
        raise SystemExit(1)


def main(folder: str, pairs: int = 2000, updates: int = 30) -> dict[str, float]:
    """The whole example in `folder`: agreement of the reward model, its ceiling, worth of answers before and after."""
    torch.set_num_threads(1)
    place, world, rng = Path(folder), World.of(seed=0), random.Random(1)
    place.mkdir(parents=True, exist_ok=True)
    unseen = [world.pair(rng) for _ in range(2 * pairs)]
    write(place / "train.jsonl", [world.pair(rng) for _ in range(pairs)])
    write(place / "unseen.jsonl", unseen)
    write(place / "prompts.jsonl", [{"prompt": prompt(rng)} for _ in range(200)])
    train_policy(place / "policy", rng, steps=pairs // 10)

    run("reward", "--model_name_or_path", place / "policy", "--dataset_name", place / "train.jsonl",
        "--eval_dataset_name", place / "unseen.jsonl", "--output_dir", place / "reward_model", "--use_cpu",
        "--num_train_epochs", 2, "--per_device_train_batch_size", 16, "--learning_rate", 2e-3)  # fmt: skip
    run("ppo", "--model_name_or_path", place / "policy", "--reward_model_path", place / "reward_model" / "reward",
        "--dataset_name", place / "prompts.jsonl", "--output_dir", place / "ppo", "--use_cpu",
        "--response_length", 10, "--temperature", 1.0, "--learning_rate", 1e-3, "--kl_coef", 0.05,
        "--missing_eos_penalty", 2.0, "--per_device_train_batch_size", 64, "--total_episodes", 64 * updates,
        "--num_sample_generations", 1)  # fmt: skip

    report = json.loads((place / "reward_model" / "report.json").read_text())
    episodes = [json.loads(line) for line in (place / "ppo" / "rollouts.jsonl").read_text().splitlines()]
    worths = [world.worth(" ".join(w for w in each["completion"].split() if w in world.worths)) for each in episodes]
    found = {
        "accuracy": report["held_out"]["accuracy"],
        "ceiling": world.ceiling(unseen),
        "worth before": sum(worths[:64]) / 64,
        "worth after": sum(worths[-64:]) / 64,
    }
    print("\n".join(f"{name:<13} {number:.3f}" for name, number in found.items()))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
