"""An exception of one process ends all of them, and its cause is what a person reads last."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearstep import PPOConfig
from nearstep.cli.machine import checks
from nearstep.cli.ppo import ppo_problems
from nearstep.common.telling import tell_launcher
from tests.tiny import byte_tokenizer, tiny_causal_lm

REWARD = """
import os, sys
import nearstep.training.loop, nearstep.trainer
from nearstep.checkpoint import files
from nearstep.evaluation.evaluator import Evaluator
from nearstep.rollout.transformers_engine import TransformersEngine
FAULT, RANK = os.environ["FAULT"], os.environ["RANK"]
def fails(*given, **named):
    if "leave" in FAULT:
        sys.exit(0)
    if "memory" in FAULT:
        raise RuntimeError("CUDA out of memory, no such price")
    raise OSError(28, "no such price")
if RANK == ("0" if "save" in FAULT else "1"):
    places = {
        "generate": (TransformersEngine, "generate"), "evaluate": (Evaluator, "evaluate"), "save": (files, "sync"),
        "update": (nearstep.training.loop, "update"),
    }
    for word, (place, name) in places.items():
        if word in FAULT:
            setattr(place, name, fails)
def length(completions, trainer_state, **columns):
    if FAULT == "reward" and RANK == "1" and trainer_state.global_step == 1:
        raise KeyError("no such price")
    return [float(len(text)) for text in completions]
"""
FAULTS = {
    "reward": "reward.py", "generate, memory": "CUDA out of memory", "generate, leave": "sys.exit(0) in the middle",
    "evaluate": "Errno 28", "save": "checkpoint-1 failed", "update, memory": "CUDA out of memory",
}  # fmt: skip


def test_the_cause_comes_before_its_consequence(tmp_path, monkeypatch):
    for name, error in (("cause", None), ("lost", RuntimeError("[gloo] Connection closed by peer"))):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / name))
        tell_launcher(name, error)
    cause, lost = (json.loads((tmp_path / name).read_text()) for name in ("cause", "lost"))
    assert cause["message"] == "nearstep: cause"
    assert lost["timestamp"] > cause["timestamp"] + 30


def test_nothing_is_written_without_a_launcher(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    tell_launcher("cause")


@pytest.mark.parametrize(("environment", "words"), [
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
      "ACCELERATE_MIXED_PRECISION": "bf16"}, []),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}, []),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ["Megatron-LM"]),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, ["mixed precision here is bfloat16"]),
])  # fmt: skip
def test_the_command_refuses_of_a_launcher_what_the_run_would_refuse(monkeypatch, environment, words):
    """What a run takes as settings is no problem of its command."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {"model_name_or_path": str(Path(__file__).parent), "reward_funcs": ("length",)}
    found = [problem.text for problem in ppo_problems(PPOConfig(dataset_name=(__file__,), **given))]
    told = [check.text for check in checks() if check.name == "launcher"]
    for each in (found, told):
        assert len(each) == len(words)
        assert all(word in text for word, text in zip(words, each, strict=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    tiny_causal_lm().save_pretrained(folder / "policy")
    byte_tokenizer().save_pretrained(folder / "policy")
    (folder / "reward.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abcdefgh"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_exception_on_one_rank_ends_both_with_its_cause_r16(world, tmp_path, fault):
    prompts = str(world / "prompts.jsonl")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "nearstep", "ppo",
        "--model_name_or_path", str(world / "policy"), "--dataset_name", prompts, "--eval_dataset_name", prompts,
        "--reward_funcs", f"{world / 'reward.py'}:length", "--output_dir", str(tmp_path / "out"), "--eval_steps", "1",
        "--total_episodes", "32", "--batch_size", "8", "--response_length", "4", "--use_cpu", "true",
        "--save_steps", "1", "--num_sample_generations", "0",
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault},
    )  # fmt: skip
    assert done.returncode != 0
    assert time.monotonic() - began < 120
    told = json.loads((tmp_path / "out" / "unfinished.json").read_text())
    for last in (done.stderr.rpartition("Root Cause (first observed failure)")[2], told["what"]):
        assert FAULTS[fault] in last, done.stderr[-4000:]
        assert "leave" in fault or "no such price" in last, done.stderr[-4000:]
