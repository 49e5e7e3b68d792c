"""What each of two processes does in the tests of one server for both: a whole run, with samples and an evaluation."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from nearstep import PPOTrainer
from tests.rewards.light import low_ids
from tests.tiny import byte_tokenizer, tiny_config
from tests.training.runs import PROMPTS, settings

ROWS = [{"prompt": text} for text in PROMPTS]


def wide_policy() -> PreTrainedModel:
    """A Llama with heads of 32, the least that vLLM's kernels for CPUs take."""
    config = tiny_config()
    config.head_dim = 32
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def main(url: str, folder: str, processes: str = "2") -> None:
    """Two updates, whose responses come from the server."""
    config = settings(
        Path(folder), engine="vllm_server", engine_url=(url,), batch_size=8, total_episodes=16, eval_steps=1,
        num_sample_generations=1, num_eval_rows=3, per_device_train_batch_size=8 // int(processes),
        stop_token_id=tuple(range(0, 99, 9)),
    )  # fmt: skip
    parts = {"train_dataset": ROWS * 2, "reward_funcs": low_ids}
    PPOTrainer(config, byte_tokenizer(), wide_policy(), **parts).train()


def lines(folder: Path, name: str) -> list[dict]:
    """A file of records."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def check_shared(url: str, folder: Path) -> None:
    """Two processes play the rows that one plays, and train on what the server has sampled from their weights."""
    from tests import two_ranks

    done = two_ranks.start("tests.engines.two_processes", url, folder / "two", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    main(url, str(folder / "one"), "1")
    two, one = (
        sorted(
            (row["episode"], row["prompt"], row["completion"])
            for row in lines(folder / name, "rollouts.jsonl")
            if row["update"] == 1
        )
        for name in ("two", "one")
    )
    assert len(two) == 8
    assert two == one
    found = lines(folder / "two", "metrics.jsonl")
    mismatch = [entry["policy/mismatch_kl"] for entry in found if "policy/mismatch_kl" in entry]
    assert len(mismatch) == 2
    assert max(mismatch) < 1e-5
    assert not (folder / "two" / "engine-weights").exists()
