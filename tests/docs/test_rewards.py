"""The examples of docs/rewards.md are run: functions, bodies of the protocol, and the settings that it names."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from nearstep import PPOConfig
from nearstep.cli.main import main
from nearstep.config.judge_files import ScoreOptions, ServeOptions
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.loading import load_function
from nearstep.rewards.remote.wire import decode_answer, decode_request
from nearstep.rewards.sandbox import run as sandbox
from tests.rewards.episodes import play
from tests.tiny import byte_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(# my_rewards\.py\n.*?)```", PAGE, flags=re.S)
    path = tmp_path / "my_rewards.py"
    path.write_text(block)
    return path


def test_the_functions_do_what_the_page_says(file):
    sources = [FunctionReward(load_function(f"my_rewards.py:{name}")) for name in ("final_answer", "no_shouting")]
    rewards = Rewards(sources, byte_tokenizer(), weights=[1.0, 0.5])
    prompts, rollout = play(["NOT 4.", "It is 5"], answer=["4", None])
    scores = rewards(prompts, rollout)
    assert scores.total.tolist() == [1.0, 0.0]
    assert scores.dense[:3].tolist() == pytest.approx([-0.05 / 3] * 3)
    assert not scores.dense[3:].any()
    tokens = Rewards([FunctionReward(load_function("my_rewards.py:short_tokens"))], byte_tokenizer())
    assert tokens(prompts, rollout).dense.tolist() == pytest.approx([-0.01] * 15)


@pytest.mark.parametrize("name", ["final_answer", "no_shouting", "short_tokens"])
def test_they_keep_the_laws_of_rewards(file, name):
    Path("samples.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "completion": "It is 4.", "answer": "4"}))
    assert main(["check", f"my_rewards.py:{name}", "--rows", "samples.jsonl"]) == 0


def test_the_bodies_of_the_protocol_are_read_as_they_stand():
    question, answer = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
    batch, identity = decode_request(question.encode())
    assert batch.columns == {"answer": ["4"]}
    assert identity.tokens == "9f2c…"
    said = decode_answer(answer.encode(), batch, "server")
    assert (said.values, said.extras, said.metrics) == ([1.0], {"found": ["4"]}, {"seen": [1.0]})


def test_every_setting_of_rewards_that_it_names_is_one():
    known = {field.name for options in (PPOConfig, ScoreOptions, ServeOptions) for field in dataclasses.fields(options)}
    named = set(re.findall(r"`-{0,2}((?:reward_|on_reward)\w+)", PAGE)) | set(re.findall(r"--(\w+)[ `]", PAGE))
    assert named - known <= {"security"}
    assert {"reward_url_batch_size", "reward_workers", "on_reward_error", "token_env"} <= named


def test_the_limits_of_the_sandbox_are_those_of_the_code():
    page = Path(__file__).parents[2].joinpath("docs", "sandbox.md").read_text(encoding="utf-8")
    assert f"| /tmp, any file, what is printed | {sandbox.DISK_BYTES >> 20} MiB" in page
    assert f"| processes and threads | {sandbox.PROCESSES} |\n| open files | {sandbox.OPEN_FILES} |" in page
    assert f"else {sandbox.PROCESSES} × `memory_bytes` at most" in page
