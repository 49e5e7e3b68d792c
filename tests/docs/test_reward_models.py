"""The commands and the Python of docs/reward_models.md are run, at a toy scale, in folders named as on the page."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from nearstep.cli.main import main
from nearstep.models.load import load_scalar_model
from nearstep.models.reward_model import make_scorer
from tests.reward_modeling.world import base_folder, pairs, write

PAGE = (Path(__file__).parents[2] / "docs" / "reward_models.md").read_text(encoding="utf-8")
SMALLER = {"reward": ["--max_steps", "4"], "ppo": ["--total_episodes", "8", "--batch_size", "8"]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base_folder(Path("runs/demo/sft"))
    write(Path("runs/demo/pairs.jsonl"), pairs(40))
    write(Path("runs/demo/prompts.jsonl"), [{"prompt": row["prompt"]} for row in pairs(8)])
    return tmp_path


def test_the_page(place):
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [words[:2] for words in commands] == [["nearstep", "reward"], ["nearstep", "ppo"]]
    for words in commands:
        assert main([*words[1:], *SMALLER[words[1]], "--use_cpu"]) == 0
    for name in ("reward", "report.json", "metrics.jsonl"):
        assert Path("runs/reward", name).exists()
    _, plain = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    found: dict[str, object] = {}
    exec(plain, found)
    model = load_scalar_model("runs/reward/reward", role="reward_model", dtype=torch.float32)
    scorer = make_scorer(model, role="reward_model", pad_token_id=None, max_tokens=64)
    (score,) = scorer.score(found["ids"]["input_ids"].tolist()).tolist()
    assert found["reward"].item() == pytest.approx(score, abs=1e-6)


@pytest.mark.slow
def test_scores_and_what_follows(place, monkeypatch):
    scores, _ = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    smaller = scores.replace("num_texts=256", "num_texts=24, response_length=8").replace(
        "total_episodes=64", "total_episodes=8, batch_size=8"
    )
    assert smaller.count("batch_size=8") == 1
    exec(smaller, {})
    assert Path("runs/ppo/policy/config.json").is_file()
