"""A run forked from another, and one of its rows computed again, from the command line."""

import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

from nearstep import RunInputs
from nearstep.assembly.replay import replay_row
from nearstep.checkpoint.seal import read_manifest
from nearstep.cli.main import main
from tests.checkpoint.saved_runs import ROWS, trainer_of
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import low_ids, settings

REWARD = (
    "def low(completion_ids, **columns):\n    return [sum(t < 100 for t in ids) / len(ids) for ids in completion_ids]\n"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three updates with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("fork")
    tiny_causal_lm().save_pretrained(folder / "policy")
    byte_tokenizer().save_pretrained(folder / "policy")
    (folder / "reward.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abcdefgh"))
    assert main([
        "ppo", "--model_name_or_path", str(folder / "policy"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--reward_funcs", f"{folder / 'reward.py'}:low", "--output_dir", str(folder / "run"), "--batch_size", "8",
        "--total_episodes", "24", "--response_length", "5", "--use_cpu", "true", "--save_steps", "1",
        "--num_sample_generations", "0", "--learning_rate", "1e-3", "--temperature", "1",
    ]) == 0  # fmt: skip
    return folder / "run"


def updates(folder: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_fork_trains_on_with_other_settings_and_names_its_parent(run, capsys):
    new = run.parent / "new"
    words = ["fork", f"{run}@2", "--output_dir", str(new), "--kl_coef", "0.5", "--total_episodes", "32"]
    assert main(words) == 0, capsys.readouterr().err
    assert updates(new) == [3, 4]
    assert read_manifest(new / "checkpoint-4").parent == read_manifest(run / "checkpoint-2").seal
    assert f"fork_from: {run / 'checkpoint-2'}" in (new / "run.yaml").read_text()
    assert (run / "checkpoint-3").is_dir()
    assert updates(run) == [1, 2, 3]
    assert main([*words, "--resume", "auto", "--total_episodes", "40"]) == 0
    assert updates(new) == [3, 4, 5]
    assert read_manifest(new / "checkpoint-5").parent == read_manifest(run / "checkpoint-2").seal


def test_the_folder_of_a_run_is_refused_before_anything_is_loaded(run, capsys):
    assert main(["ppo", "--config", str(run / "run.yaml")]) == 2
    assert "holds 3 checkpoints of a run: give --resume auto" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    ([], "nearstep fork RUN@UPDATE --output_dir NEW"),
    (["{run}@9", "--output_dir", "x"], "has no checkpoint of update 9: there are those of updates 1, 2, 3"),
    (["{run}@2"], "--output_dir is missing"),
    (["{run}@2", "--output_dir", "x", "--config", "y"], "give what changes as flags"),
    (["{run}@2", "--output_dir", "x", "--recipe", "sao"], "run.yaml gives every setting: name those that change"),
    (
        ["{run}@2", "--output_dir", "{run}/x", "--advantage", "batch_normalized"],
        "holds policy and value, and this run trains policy: keep the settings that say whether there is a critic",
    ),
])  # fmt: skip
def test_what_cannot_be_forked_is_said(run, capsys, words, said):
    assert main(["fork", *(word.format(run=run) for word in words)]) != 0
    assert said in capsys.readouterr().err


def test_a_run_of_python_objects_says_which_they_were(tmp_path, capsys):
    trainer_of(tmp_path / "run", total_episodes=16, given={"callbacks": [TrainerCallback()]}).train()
    objects = (
        "model: an object of LlamaForCausalLM; reward_funcs[0]: the function low_ids; train_dataset: list of 8 entries"
    )
    capsys.readouterr()
    assert main(["replay", str(tmp_path / "run"), "--update", "1"]) == 2
    said = capsys.readouterr().err
    assert f"tokenizer: an object of TokenizersBackend; {objects}. In Python call" in said
    words = ["fork", f"{tmp_path / 'run'}@1", "--output_dir", str(tmp_path / "new")]
    assert main(words) == 2
    assert (
        "was made of objects in Python, which its run.yaml cannot hold: tokenizer: an object of"
        in capsys.readouterr().err
    )
    assert main([*words, "--model_name_or_path=x", "--dataset-name", "y"]) == 2
    assert "cannot hold: reward_funcs[0]: the function low_ids. Name something" in capsys.readouterr().err
    row = replay_row(
        settings(tmp_path / "run", total_episodes=16, save_steps=1), tmp_path / "run", update=2, row=1,
        inputs=RunInputs(byte_tokenizer(), tiny_causal_lm(), reward_funcs=low_ids, train_dataset=ROWS),
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert row.score == pytest.approx(records[8 + 1]["final_score"])


def test_a_row_is_computed_again(run, capsys):
    records = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    record = next(each for each in records if each["update"] == 3 and each["episode"] == 16 + 5)
    output = run.parent / "row.jsonl"
    assert main(["replay", str(run), "--update", "3", "--row", "5", "--output", str(output)]) == 0
    tokens = [json.loads(line) for line in output.read_text().splitlines()]
    assert [token["token"] for token in tokens] == record["completion_ids"]
    shown = capsys.readouterr().out
    assert f"score {record['final_score']:.6g}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert all(token["ratio"] == pytest.approx(1, abs=1e-5) for token in tokens)


def test_a_row_that_cannot_be_computed_is_said(run, capsys):
    assert main(["replay", str(run), "--update", "9"]) == 2
    assert "is computed from checkpoint-8" in capsys.readouterr().err
    assert main(["replay", str(run), "--update", "2", "--row", "8"]) == 2
    assert "update 2 has rows 0 to 7" in capsys.readouterr().err
