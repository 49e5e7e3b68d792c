"""What saving costs: a run that saves every 10 updates against the same run without, and what the pauses are.

    python -m benchmarks.saving [--updates 20]      # some minutes of one processor core

A Llama of 10 M weights with a critic of its own, so that a checkpoint holds weights and moments of both and two model
folders besides. Processor seconds are those of all threads, so what is written beside the training counts. Writes
benchmarks/results/saving.md.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from tests.tiny import byte_tokenizer
from tests.training.runs import PROMPTS, low_ids, settings
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.harness.machine import machine
from benchmarks.harness.results import write_results
from nearstep import PPOTrainer

RESULTS = Path(__file__).parent / "results"
SAVE_EVERY = 10


def policy() -> PreTrainedModel:
    """A Llama of 10 M weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000, hidden_size=320, intermediate_size=864, num_hidden_layers=6, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def seconds_of(folder: Path, updates: int, save_steps: int | None) -> float:
    """Processor seconds of a run: 32 episodes an update, responses of 64 tokens, four epochs."""
    config = settings(
        folder, total_episodes=32 * updates, per_device_train_batch_size=32, response_length=64, num_ppo_epochs=4,
        learning_rate=3e-6, stop_token="none", save_steps=save_steps, log_rollouts=False,
    )  # fmt: skip
    rows = [{"prompt": text * 8} for text in PROMPTS * 8]
    run = PPOTrainer(config, byte_tokenizer(), policy(), reward_funcs=low_ids, train_dataset=rows)
    began = time.process_time()
    run.train()
    return time.process_time() - began


def main() -> None:
    """Run both twice, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    updates = parser.parse_args().updates
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        without, saving = [], []
        for number in range(2):
            without.append(seconds_of(folder / f"without-{number}", updates, None))
            saving.append(seconds_of(folder / f"saving-{number}", updates, SAVE_EVERY))
        lines = [json.loads(line) for line in (folder / "saving-1" / "metrics.jsonl").read_text().splitlines()]
        checkpoint = folder / "saving-1" / f"checkpoint-{updates}"
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) / 2**20
    # The pause after an update is told with the next one; the last one is told by none.
    pauses = sum(line["time/save"] * line["seconds"] for line in lines if "time/save" in line)
    wall = sum(line["seconds"] for line in lines)
    rows = [
        f"| processor seconds without saving | {min(without):.1f} |",
        f"| the same, a checkpoint every {SAVE_EVERY} updates | {min(saving):.1f} |",
        f"| ratio | {min(saving) / min(without):.3f} |",
        f"| share of the time in which training waited for a save | {100 * pauses / wall:.2f} % |",
        f"| a checkpoint, MiB | {size:.0f} |",
    ]
    head = ["# What saving costs", "", "By `python -m benchmarks.saving`.", ""]
    page = "\n".join([*head, f"| {updates} updates, 10 M weights | |", "| --- | --- |", *rows])
    print(page)
    record = {
        "without_seconds": without,
        "saving_seconds": saving,
        "pause_share": pauses / wall,
        "checkpoint_mib": size,
    }
    write_results(RESULTS, "saving", record, page, machine())


if __name__ == "__main__":
    main()
