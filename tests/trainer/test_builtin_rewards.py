"""Built-in rewards in a run: by name and as objects, beside functions; refused before any weight is loaded."""

import json
import shlex

import pytest

from nearstep import ConfigError, ModelError, PPOTrainer, RewardError
from nearstep.cli.main import main
from nearstep.rewards.builtin import LengthTarget, Rouge, Sentiment
from tests.rewards.builtin.asking import values
from tests.rewards.builtin.tiny_models import save_classifier
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text, "summary": None if number == 0 else f"{text} is it"} for number, text in enumerate(PROMPTS)]


def trainer_of(folder, *, config=None, **given):
    parts = {"processing_class": byte_tokenizer(), "model": tiny_causal_lm(), "train_dataset": ROWS, **given}
    return PPOTrainer(args=config or settings(folder), **parts)


def rollouts(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_names_objects_and_functions_stand_side_by_side(tmp_path):
    given = ["rouge:reference=summary", low_ids, LengthTarget(words=3), "length_target:words=5"]
    trainer = trainer_of(tmp_path, reward_funcs=given, config=settings(tmp_path, reward_weights=(2.0, 1.0, 0.5, 0.25)))
    trainer.train()
    records = rollouts(tmp_path)
    assert list(records[0]["scores"]) == ["rouge", "low_ids", "length_target", "length_target_2"]
    for record in records:
        (row,) = [row for row in ROWS if row["prompt"] == record["prompt"]]
        (rouge,) = values(Rouge(), record["completion"], reference=[row["summary"]])
        assert record["scores"]["rouge"] == (None if rouge is None else pytest.approx(rouge))
        assert record["scores"]["length_target"] == pytest.approx(
            values(LengthTarget(words=3), record["completion"])[0]
        )
    assert any(record["scores"]["rouge"] is None for record in records)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"reward/rouge", "reward/length_target_2"} <= set(metrics)


def test_one_name_is_enough_and_old_names_of_settings_are_understood(tmp_path):
    with pytest.warns(UserWarning, match="is called reward_"):
        config = settings(tmp_path, reward_functions=["helpfulness", "safety"], reward_function_weights=[1, 0.6, 0.4])
    trainer = trainer_of(tmp_path, config=config, reward_funcs="engagement")
    assert trainer.recipe.rewards.names == ["engagement", "helpfulness", "safety"]


def test_a_model_behind_a_reward_is_loaded_before_the_run(tmp_path):
    folder = save_classifier(tmp_path / "mood", ["negative", "positive"])
    sentiment = Sentiment(model=folder)
    trainer = trainer_of(tmp_path / "run", reward_funcs=[sentiment])
    assert "model" in vars(sentiment._reader)
    trainer.train()
    assert all(0 <= record["scores"]["sentiment"] <= 1 for record in rollouts(tmp_path / "run"))


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ("rouge", RewardError, "no column 'reference'. Columns handed over: summary. .*rouge:reference=COLUMN"),
        ("rogue", ConfigError, r"'rogue' is no built-in reward and no folder; did you mean rouge\?"),
        ("length_target:wrods=3", ConfigError, "did you mean words"),
        ("hallucination", ConfigError, "use grounding or entailment or honesty"),
        ("sentiment:model=./none", ModelError, "the folder './none' does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_any_weight_is_loaded(given, error, complaint, tmp_path, monkeypatch):
    monkeypatch.setattr("nearstep.assembly.run.build_models", None)  # it would load all weights
    with pytest.raises(error, match=complaint):
        trainer_of(tmp_path, reward_funcs=[low_ids, given])


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_worker_processes_they_say_the_same(tmp_path, with_model):
    given = ["rouge:reference=summary", LengthTarget(words=3)]
    if with_model:
        given.append(f"sentiment:model={save_classifier(tmp_path / 'mood', ['negative', 'positive'])}")
    for place, changes in {"here": {}, "there": {"reward_workers": 1, "reward_timeout_seconds": 60.0}}.items():
        config = settings(tmp_path / place, total_episodes=8, **changes)
        trainer_of(tmp_path / place, reward_funcs=given, config=config).train()
    here, there = ([record["scores"] for record in rollouts(tmp_path / place)] for place in ("here", "there"))
    assert there == [{name: pytest.approx(score, abs=1e-6) for name, score in row.items()} for row in here]


def test_a_file_is_scored_by_them(tmp_path, capsys):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    rows = [{"prompt": "Say: ", "completion": text, "answer": 7} for text in ("It is 7", "3 + 4 = 8")]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"""score --input '{tmp_path}/said.jsonl' --model_name_or_path '{tmp_path}/policy' --output
        '{tmp_path}/scores.jsonl' --reward_funcs numeric_answer arithmetic --reward_weights 1 0.5"""
    assert main(shlex.split(words)) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["scores"] for line in lines] == [
        {"numeric_answer": 1.0, "arithmetic": 0.0},
        {"numeric_answer": 0.0, "arithmetic": -1.0},
    ]


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text, "summary": text}) + "\n" for text in PROMPTS))
    file = tmp_path / "run.yaml"
    file.write_text(
        "reward_funcs: [readability, length_target:words=3, 'regex:pattern=.{1,9}', 'keywords:words=a,b']\n"
        "reward_weights: [1, 0.5, 0.5, 1]\n"
    )
    words = f"""ppo --config '{file}' --model_name_or_path '{tmp_path}/policy' --dataset_name '{data}'
        --output_dir '{tmp_path}/run' --response_length 6
        --total_episodes 8 --batch_size 4 --per_device_train_batch_size 4 --learning_rate 1e-3
        --num_sample_generations 0"""
    assert main(shlex.split(words)) == 0, capsys.readouterr().err
    assert list(rollouts(tmp_path / "run")[0]["scores"]) == ["readability", "length_target", "regex", "keywords"]
