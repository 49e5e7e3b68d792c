"""The pages of a newcomer run as they stand: files are written, commands and Python run, with tiny models."""

import json
import shutil
import sys

import pytest

from nearstep.cli.main import main
from tests.docs.blocks import ROOT, blocks_of
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

NEEDS_MORE = {"demo", "watch", "serve-reward", "serve-engine"}  # minutes, or a server that does not end
SMALL = {
    "ppo": [
        "--total_episodes", "8", "--per_device_train_batch_size", "4", "--batch_size", "4", "--response_length", "6",
        "--num_ppo_epochs", "1", "--num_sample_generations", "0",
    ],
    "generate": ["--response_length", "6"],
}  # fmt: skip
WELL = (0, 3)  # nearstep doctor says by 3 that a run is ill: of two updates it may be


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What `nearstep demo` leaves, and a model and data of a hub, all tiny."""
    place = tmp_path_factory.mktemp("newcomer")
    for name, model in (("runs/demo/sft", tiny_causal_lm(layers=1)), ("runs/demo/reward", tiny_scalar_model(layers=1))):
        model.save_pretrained(place / name)
        byte_tokenizer(chat=False).save_pretrained(place / name)
    shutil.copytree(place / "runs/demo/sft", place / "Qwen/Qwen3-0.6B")
    rows = "\n".join(json.dumps({"prompt": f"Say {n}.", "answer": str(n)}) for n in range(8))
    (place / "trl-lib/tldr").mkdir(parents=True)
    for name in ("trl-lib/tldr/train.jsonl", "runs/demo/prompts.jsonl", "prompts.jsonl"):
        (place / name).write_text(rows)
    (place / "my_rewards.py").write_text(
        "def short(completions):\n    return [-len(text) / 100 for text in completions]\n"
    )
    sample = {"prompt": "2 + 2?", "completion": "It is 4.", "answer": "4"}
    (place / "samples.jsonl").write_text(json.dumps(sample))
    return place


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(world))
    monkeypatch.delitem(sys.modules, "my_region", raising=False)
    return world


def play(page, here):
    """Every block of a page in its order; how many commands and pieces of Python ran."""
    ran = 0
    for block in blocks_of(ROOT / "docs" / page):
        if block.file is not None:
            (here / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
            ran += 1
        elif block.language == "bash":
            for name, *words in block.commands():
                if (
                    name in NEEDS_MORE
                    or {"…", "--nproc", "--help"} & {*words}
                    or any(word.isupper() and len(word) > 2 for word in words)
                ):
                    continue
                assert main([name, *words, *SMALL.get(name, [])]) in WELL, (name, words)
                ran += 1
    return ran


def test_the_quick_start(here):
    assert play("index.md", here) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "pieces"),
    [
        ("tutorials/first_run.md", 6),
        ("tutorials/your_region.md", 4), ("tutorials/your_reward.md", 2), ("algorithms/ppo.md", 1),
        ("algorithms/decoupled.md", 3), ("algorithms/divergence.md", 3),
    ],
)  # fmt: skip
def test_a_page_runs(page, pieces, here):
    assert play(page, here) == pieces


@pytest.mark.slow
def test_reading_a_run(here):
    """Its run is the demo's, which the page of PPO makes here."""
    play("algorithms/ppo.md", here)
    shutil.copytree(here / "runs" / "ppo", here / "runs" / "demo" / "ppo", dirs_exist_ok=True)
    assert play("tutorials/reading_a_run.md", here) == 1
