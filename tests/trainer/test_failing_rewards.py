"""A user's reward file with a sleeping, a crashing and a NaN row, in real `nearstep ppo` runs, under each policy."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nearstep.cli.main import main
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm

REWARDS = """
import ctypes, pathlib, time

HERE = pathlib.Path(__file__).parent

def score(completions, fate, **kwargs):
    values = []
    for text, what in zip(completions, fate, strict=True):
        if what == "sleep":
            time.sleep(1000)
        if what == "crash":
            ctypes.string_at(0)
        if what == "crash once" and not (HERE / "crashed").exists():
            (HERE / "crashed").touch()
            ctypes.string_at(0)
        values.append(float("nan") if what == "nan" else float(len(text)))
    return values

def dense(completion_ids, **kwargs):
    return [[float(token < 100) for token in ids] for ids in completion_ids]
"""
FATES = ["fine", "sleep", "fine", "crash", "fine", "nan", "fine", "fine"]


@pytest.fixture
def folder(tmp_path):
    model = tiny_causal_lm()
    model.save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def run(folder, *words, fates=FATES, function="score", updates=2):
    """A run of `updates` updates of 8 episodes, every prompt in each; returns the exit code."""
    prompts = [json.dumps({"prompt": f"prompt {row}", "fate": fate}) for row, fate in enumerate(fates)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    return main([
        "ppo", "--model_name_or_path", str(folder / "policy"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--reward_funcs", f"{folder / 'rewards.py'}:{function}", "--output_dir", str(folder / "run"),
        "--total_episodes", str(8 * updates), "--batch_size", "8", "--response_length", "6", "--use_cpu",
        "--num_sample_generations", "0", "--temperature", "1.0", "--learning_rate", "1e-3", *words,
    ])  # fmt: skip


WORKERS = ("--reward_timeout_seconds", "1", "--reward_workers", "2")


def lines(folder, name):
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def weights(folder):
    return load_file(folder / "run" / "policy" / "model.safetensors")


@pytest.mark.slow
def test_raise_ends_the_run_and_names_function_row_and_reason(folder, capsys):
    assert run(folder, *WORKERS) == 1
    said = capsys.readouterr().err
    assert "reward function 'score'" in said or "reward 'score'" in said
    assert "of the batch (episode" in said
    assert any(words in said for words in ("did not answer within", "signal SIGSEGV", "returned nan"))
    assert not (folder / "run" / "policy").exists()


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        slow(("sleep", "did not answer within reward_timeout_seconds = 1")),
        ("crash", "SIGSEGV"),
        slow(("nan", "returned nan")),
    ],
)
def test_raise_tells_what_each_of_them_did(folder, capsys, fate, words):
    assert run(folder, *WORKERS, fates=["fine"] * 5 + [fate] + ["fine"] * 2) == 1
    assert words in capsys.readouterr().err


def test_drop_trains_on_the_rows_that_are_left_and_counts_the_others(folder):
    assert run(folder, *WORKERS, "--on_reward_error", "drop") == 0
    records = lines(folder, "rollouts.jsonl")
    assert len(records) == 16
    for record in records:
        fate = record["columns"]["fate"]
        if fate == "fine":
            assert record["total_score"] is not None
            assert "failures" not in record
        else:
            assert record["total_score"] is record["final_score"] is record["scores"]["score"] is None
            reason = {"sleep": "did not answer within", "crash": "SIGSEGV", "nan": "returned nan"}[fate]
            assert reason in record["failures"]["score"]
    for update, metrics in enumerate(lines(folder, "metrics.jsonl"), start=1):
        scored = [r["total_score"] for r in records if r["update"] == update and r["total_score"] is not None]
        assert metrics["reward/score_failed"] == 3 / 8
        assert metrics["response/left_out"] == 3 / 8
        assert metrics["objective/scores"] == pytest.approx(sum(scored) / 5)
        assert metrics["reward/score"] == pytest.approx(sum(scored) / 5)
        assert "not_finite" not in metrics
    trained = weights(folder)
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    start = tiny_causal_lm().state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.items() if name in start)


@pytest.mark.slow
def test_drop_ends_the_run_all_the_same_if_over_half_fail(folder, capsys):
    assert run(folder, *WORKERS, "--on_reward_error", "drop", fates=["nan"] * 5 + ["fine"] * 3) == 1
    assert "5 of 8 rows have no reward" in capsys.readouterr().err


def test_retry_goes_on_once_the_row_is_well(folder):
    fates = ["fine", "crash once", *["fine"] * 6]
    assert run(folder, *WORKERS, "--on_reward_error", "retry", fates=fates) == 0
    assert (folder / "crashed").exists()
    first, second = lines(folder, "metrics.jsonl")
    assert (first["reward/score_failed"], second["reward/score_failed"]) == (1 / 8, 0)
    assert all(record["total_score"] is not None for record in lines(folder, "rollouts.jsonl"))


def test_retry_ends_the_run_after_the_last_attempt(folder, capsys):
    words = ("--on_reward_error", "retry", "--reward_retries", "1")
    assert run(folder, *WORKERS, *words, fates=["nan", *["fine"] * 7]) == 1
    assert "It was asked 2 times" in capsys.readouterr().err


@pytest.mark.slow
def test_without_workers_the_same_policies_hold_for_what_a_process_survives(folder):
    assert run(folder, "--on_reward_error", "drop", fates=["nan", "nan", *["fine"] * 6]) == 0
    assert [m["reward/score_failed"] for m in lines(folder, "metrics.jsonl")] == [2 / 8, 2 / 8]


@pytest.mark.slow
def test_workers_change_no_number(folder):
    fates = ["fine"] * 8
    assert run(folder, fates=fates) == 0
    here = lines(folder, "rollouts.jsonl"), weights(folder)
    assert run(folder, "--reward_workers", "2", fates=fates) == 0
    there = lines(folder, "rollouts.jsonl"), weights(folder)
    assert here[0] == there[0]
    assert all(torch.equal(tensor, there[1][name]) for name, tensor in here[1].items())


def test_rewards_per_token_reach_training_and_the_records(folder):
    assert run(folder, fates=["fine"] * 8, function="dense") == 0
    records = lines(folder, "rollouts.jsonl")
    for record in records:
        assert record["token_rewards"] == [float(token < 100) for token in record["completion_ids"]]
        assert record["total_score"] == record["scores"]["dense"] == sum(record["token_rewards"])
    metrics = lines(folder, "metrics.jsonl")[0]
    totals = [record["total_score"] for record in records[:8]]
    assert metrics["objective/scores"] == metrics["objective/scores_raw"] == pytest.approx(sum(totals) / 8)
    assert not math.isnan(metrics["loss/value_avg"])


@pytest.mark.parametrize("policy", [slow("drop"), "raise"])
def test_a_run_that_ends_leaves_no_worker_behind(folder, policy):
    before = children()
    run(folder, *WORKERS, "--on_reward_error", policy)
    assert children() - before == set()


def children():
    """The processes that this one has started and that are still there, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended since
            continue
        if int(text.rpartition(")")[2].split()[1]) == os.getpid():
            found.add(stat.parent.name)
    return found
