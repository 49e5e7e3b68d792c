"""Evaluation while training: numbers, rows, the start, references, the judge, going on, the end of a run, in Python."""

import json
import math
import shutil

import pytest
import torch

from nearstep import ConfigError, PPOTrainer
from nearstep.rollout.transformers_engine import TransformersEngine
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings

HELD_OUT = [
    {"prompt": "xyz", "reference": "!!"},
    {"prompt": "once upon", "reference": None},
    {"prompt": "Q", "reference": "zz"},
]


def length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def trainer_of(folder, *, eval_dataset=HELD_OUT, model=None, reward=low_ids, given=None, **changes):
    return PPOTrainer(
        args=settings(folder, **{"learning_rate": 1e-2, **changes}), processing_class=byte_tokenizer(),
        model=model or tiny_causal_lm(layers=1), reward_funcs=reward,
        train_dataset=[{"prompt": text} for text in PROMPTS], eval_dataset=eval_dataset, **(given or {}),
    )  # fmt: skip


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def evaluations(folder):
    return [line for line in lines(folder, "metrics.jsonl") if "eval/objective/scores" in line]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    file = tmp_path_factory.mktemp("rewards") / "judges.py"
    file.write_text("def length(completion_ids, **kwargs):\n    return [float(len(ids)) for ids in completion_ids]\n")
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rewards):
    """Three updates, each evaluated, the start too; a checkpoint after each."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = trainer_of(
        folder, eval_steps=1, eval_on_start=True, save_steps=1, eval_reward_funcs=f"{rewards}:length",
        num_sample_generations=3, keep_best=True,
    )  # fmt: skip
    trainer.train()
    return folder, trainer


def test_rows_hold_what_the_numbers_are_made_of(whole):
    folder, _ = whole
    rows, numbers = lines(folder, "eval_rollouts.jsonl"), evaluations(folder)
    assert [(row["update"], row["row"]) for row in rows] == [(update, row) for update in range(4) for row in range(3)]
    start = rows[:3]
    assert all(
        (row["start_completion"], row["start_score"]) == (first["completion"], first["score"])
        for row, first in zip(rows, start * 4, strict=True)
    )
    assert any(row["completion"] != row["start_completion"] for row in rows)  # it moved
    assert [row["reference"] for row in start] == ["!!", None, "zz"]
    ids = [[*byte_tokenizer()(row["reference"]).input_ids, 256] for row in (start[0], start[2])]
    assert [row["reference_score"] for row in (start[0], start[2])] == pytest.approx(low_ids(ids))
    assert start[1]["reference_score"] is None
    for update, line in enumerate(numbers):
        own = rows[3 * update : 3 * update + 3]
        assert line["update"] == update
        assert line["eval/objective/scores"] == pytest.approx(sum(row["score"] for row in own) / 3)
        assert line["eval/response/length_mean"] == pytest.approx(sum(row["response_length"] for row in own) / 3)
        assert line["eval/judge/scores"] == pytest.approx(sum(row["judge"] for row in own) / 3)
        assert line["eval/judge/scores"] == line["eval/response/length_mean"]
        wins = [0.5 if row["score"] == row["start_score"] else float(row["score"] > row["start_score"]) for row in own]
        assert line["eval/win_rate/start"] == pytest.approx(sum(wins) / 3)
        assert line["eval/win_rate/reference_n"] == 2
    assert numbers[0]["eval/win_rate/start"] == 0.5


def test_the_kl_is_to_the_reference_on_the_responses_of_the_evaluation(whole):
    """By transformers' own forward passes: Σ log π − log π_ref over the response, at the sampling temperature of 1."""
    folder, trainer = whole
    start = tiny_causal_lm(layers=1)
    last = lines(folder, "eval_rollouts.jsonl")[-3:]
    tokenizer = byte_tokenizer()
    for row in last:
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        said = []
        with torch.no_grad():
            for _ in range(row["response_length"]):
                logits = trainer.model(input_ids=torch.tensor([prompt + said])).logits[0, -1]
                said.append(int(logits.argmax()))
            ids = torch.tensor([prompt + said])
            ours, theirs = (
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (trainer.model, start)
            )
        chosen = torch.tensor(said)[:, None]
        assert row["kl"] == pytest.approx(float((ours - theirs).gather(1, chosen).sum()), abs=1e-4)
    assert any(abs(row["kl"]) > 1e-3 for row in last)
    assert all(row["kl"] == pytest.approx(0, abs=1e-5) for row in lines(folder, "eval_rollouts.jsonl")[:3])


def test_samples_have_the_start_beside_them(whole):
    folder, _ = whole
    samples = lines(folder, "samples.jsonl")
    starts = lines(folder, "eval_rollouts.jsonl")[:3]
    assert [(each["start_response"], each["start_score"]) for each in samples] == [
        (row["completion"], row["score"]) for row in starts
    ] * 3


def test_a_resumed_run_goes_on_with_the_same_bits_and_knows_its_start(whole, tmp_path, rewards):
    """The start's answers come out of the checkpoint: nothing is generated before the update that is resumed."""
    folder, _ = whole
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.jsonl", "eval_rollouts.jsonl", "samples.jsonl", "run.yaml"):
        (run / name).write_bytes((folder / name).read_bytes())
    shutil.copytree(folder / "checkpoint-1", run / "checkpoint-1")
    calls = []

    class Watched(TransformersEngine):
        def generate(self, prompts, settings, row_ended=None):
            calls.append((len(prompts), settings.greedy))
            return super().generate(prompts, settings, row_ended)

    resumed = trainer_of(
        run, eval_steps=1, eval_on_start=True, save_steps=1, eval_reward_funcs=f"{rewards}:length",
        num_sample_generations=3, keep_best=True, resume="auto", given={"engine": Watched},
    )  # fmt: skip
    resumed.train()
    assert calls[0] == (8, False)
    assert lines(run, "eval_rollouts.jsonl") == lines(folder, "eval_rollouts.jsonl")
    assert lines(run, "samples.jsonl") == lines(folder, "samples.jsonl")
    clocks = ("time/", "seconds", "eps", "tokens_per_second")
    ours, theirs = (
        [
            {name: value for name, value in line.items() if not name.startswith(clocks)}
            for line in lines(each, "metrics.jsonl")
        ]
        for each in (run, folder)
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_evaluation_data_lets_the_start_answer_anew(whole, tmp_path):
    """Its weights are those of the start still, not those of the checkpoint."""
    folder, _ = whole
    run = tmp_path / "run"
    shutil.copytree(folder / "checkpoint-2", run / "checkpoint-2")
    other = [{"prompt": "something else"}, *HELD_OUT]
    trainer_of(run, eval_dataset=other, eval_steps=1, resume="auto", num_sample_generations=0).train()
    rows = {row["prompt"]: row for row in lines(run, "eval_rollouts.jsonl")}
    before = {row["prompt"]: row["completion"] for row in lines(folder, "eval_rollouts.jsonl") if row["update"] == 0}
    assert len(rows) == 4
    assert {prompt: rows[prompt]["start_completion"] for prompt in before} == before


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sampled_evaluations_are_the_same_for_the_same_weights(tmp_path, number):
    """Two samples for each prompt, by random numbers that training does not use."""
    trainer = trainer_of(
        tmp_path, learning_rate=0.0, eval_steps=1, eval_temperature=2.0, eval_num_generations=2, eval_seed=number,
        total_episodes=16, num_sample_generations=0,
    )  # fmt: skip
    trainer.train()
    rows = lines(tmp_path, "eval_rollouts.jsonl")
    assert [(row["row"], row["sample"]) for row in rows[:6]] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row["completion"] for row in rows[:6]] == [row["completion"] for row in rows[6:]]
    assert rows[0]["completion"] != rows[1]["completion"]
    assert evaluations(tmp_path)[0]["eval/win_rate/start"] == 0.5
    assert evaluations(tmp_path)[0]["eval/objective/scores_n"] == 3


def test_the_start_under_adapters_is_the_policy_without_them(tmp_path):
    trainer = trainer_of(tmp_path, use_peft=True, eval_steps=1, total_episodes=8, learning_rate=0.1)
    trainer.train()
    rows = lines(tmp_path, "eval_rollouts.jsonl")
    with trainer.model.disable_adapter():
        assert trainer.evaluate()["eval_win_rate/start"] == 0.5
    assert [row["start_score"] for row in rows] != [row["score"] for row in rows]
    assert trainer.evaluate()["eval_objective/kl"] == pytest.approx(evaluations(tmp_path)[-1]["eval/objective/kl"])


def test_evaluate_gives_the_metrics_now(tmp_path):
    trainer = trainer_of(tmp_path, advantage="batch_normalized", kl_coef=0.0, total_episodes=8)
    before = trainer.evaluate()
    assert before["eval_win_rate/start"] == 0.5
    assert "eval_objective/kl" not in before  # no reference is loaded
    assert not (tmp_path / "metrics.jsonl").exists()
    trainer.train()
    found = trainer.evaluate(metric_key_prefix="test")
    assert found["test_objective/scores"] == evaluations(tmp_path)[-1]["eval/objective/scores"]
    with pytest.raises(ConfigError, match="evaluate: there is nothing to evaluate on"):
        trainer_of(tmp_path / "other", eval_dataset=None).evaluate()


def test_several_evaluation_sets_have_their_names(tmp_path):
    sets = {"short": HELD_OUT[:1], "long": HELD_OUT[1:]}
    trainer = trainer_of(tmp_path, eval_dataset=sets, eval_steps=1, total_episodes=8, keep_best=True)
    trainer.train()
    rows = lines(tmp_path, "eval_rollouts.jsonl")
    assert [(row["dataset"], row["row"]) for row in rows] == [("short", 0), ("long", 0), ("long", 1)]
    (line,) = [line for line in lines(tmp_path, "metrics.jsonl") if "eval/short/objective/scores" in line]
    assert line["eval/long/objective/scores"] == pytest.approx((rows[1]["score"] + rows[2]["score"]) / 2)
    assert trainer.recipe.report.reporter.callbacks_state()["best_metric"] == line["eval/short/objective/scores"]
    with pytest.raises(ConfigError, match="'a/b' names evaluation data"):
        trainer_of(tmp_path, eval_dataset={"a/b": HELD_OUT})


def test_a_stream_to_evaluate_on_is_bounded(tmp_path):
    import datasets

    def rows():
        yield from ({"prompt": f"p{number}"} for number in range(1000))

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(ConfigError, match="num_eval_rows says how much of it"):
        trainer_of(tmp_path, eval_dataset=stream)
    trainer = trainer_of(tmp_path, eval_dataset=stream, num_eval_rows=3)
    (chunk,) = trainer.recipe.evaluator.sets[0].chunks
    assert chunk.inputs == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("changes", "last", "words"),
    [
        slow(({"stop_kl": 1e-9, "kl_estimator": "k3"}, 2, "objective/kl")),
        ({"stop_score": 0.0, "stop_patience": 2}, 2, "has reached stop_score = 0.0 2 times in a row"),
        slow(({"stop_score": 0.0, "eval_steps": 2}, 2, "eval/objective/scores")),
        ({"early_stopping_patience": 2, "eval_steps": 1, "learning_rate": 0.0}, 3, "early_stopping_patience"),
        pytest.param({"stop_score": 100.0, "stop_kl": 1e9}, 4, "", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_by_its_rules(tmp_path, capsys, changes, last, words):
    """`early_stopping_patience` counts after the first evaluation, which is always the best so far."""
    trainer = trainer_of(tmp_path, total_episodes=32, **changes)
    assert trainer.train().updates == last
    assert evaluations(tmp_path)[-1]["update"] == last
    printed = " ".join(capsys.readouterr().out.split())
    assert ("the run ends here: " in printed) == bool(words)
    assert words in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        pytest.param(
            {"metric_for_best_model": "eval_response/length_mean", "greater_is_better": True},
            max,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"metric_for_best_model": "eval/response/length_mean", "greater_is_better": False},
            min,
            marks=pytest.mark.slow,
        ),
        ({"metric_for_best_model": "loss/value_avg"}, min),
        pytest.param({"metric_for_best_model": "train/objective/scores"}, max, marks=pytest.mark.slow),
    ],
)
def test_the_best_checkpoint_is_the_one_with_the_best_metric(tmp_path, changes, kept):
    trainer_of(tmp_path, eval_steps=1, keep_best=True, total_episodes=32, save_minutes=None, **changes).train()
    name = changes["metric_for_best_model"].replace("eval_", "eval/").removeprefix("train/")
    values = {line["update"]: line[name] for line in lines(tmp_path, "metrics.jsonl") if name in line}
    assert len(values) == 4
    best = kept(values.values())
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == [
        f"checkpoint-{next(update for update, value in values.items() if value == best)}"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_num_generations": 2}, "would be one and the same"),
        ({"metric_for_best_model": "response/length_mean"}, "say by greater_is_better"),
        ({"early_stopping_patience": 1}, "give eval_steps"),
        (
            {"early_stopping_patience": 1, "eval_steps": 1, "metric_for_best_model": "train/objective/scores"},
            "is training's",
        ),
        ({"eval_reference_column": "answer"}, "eval_reference_column = answer"),
        ({"eval_reward_funcs": "nowhere.py:f"}, "nowhere.py"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        trainer_of(tmp_path, **changes)


def test_settings_of_evaluation_need_something_to_evaluate_on(tmp_path):
    with pytest.raises(ConfigError, match="eval_on_start, eval_reward_funcs: there is nothing to evaluate on"):
        trainer_of(tmp_path, eval_dataset=None, eval_on_start=True, eval_reward_funcs="exact_match")


def test_a_row_that_is_not_scored_stands_as_null_and_counts_nowhere(tmp_path):
    def partly(prompts, completion_ids, **kwargs):
        return [None if prompt == "Q" else float(len(ids)) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    trainer_of(tmp_path, reward=partly, on_reward_error="drop", total_episodes=8).train()
    rows = lines(tmp_path, "eval_rollouts.jsonl")
    assert [row["score"] is None for row in rows] == [False, False, True]
    line = evaluations(tmp_path)[-1]
    assert (line["eval/objective/scores_n"], line["eval/win_rate/start_n"]) == (2, 2)
    assert math.isfinite(line["eval/objective/scores"])
