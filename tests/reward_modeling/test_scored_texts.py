"""Rewards score, the model learns: scores by regression, order by pairs, on texts of the data or of the model."""

import json
import math

import pytest
import torch

from nearstep.common.errors import ConfigError, DataError, RewardError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.limits import Limits
from nearstep.models.load import load_scalar_model
from nearstep.models.reward_model import make_scorer
from nearstep.reward_modeling.scored_texts import Scored, comparison_of
from nearstep.reward_modeling.trainer import RewardModelTrainer
from nearstep.reward_modeling.writing import Writer
from nearstep.scale.torch_backend import torch_backend
from tests.lanes import slow
from tests.reward_modeling.world import base_folder, chats, pairs, trainer, worth
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

QUESTIONS = [{"prompt": f"Word {number}:"} for number in range(30)]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def first_letter(completions, **columns):
    return [float(text[:1] == "a") for text in completions]


def scored(folder, rows, *functions, **changes):
    return trainer(folder, rows, reward_funcs=functions or (length,), **changes)


def answered(rows):
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]


# --- What is scored


def test_the_answer_alone_is_scored_beside_its_prompt_and_columns(tmp_path):
    seen = {}

    def watch(prompts, completions, completion_ids, topic, **others):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, topic=topic, others=others)
        return [float(number) for number in range(len(completions))]

    rows = [{"prompt": "Say:", "completion": f" {word}", "topic": word} for word in ("yes", "no")]
    scored(tmp_path, rows, watch, held_out_share=0.0)
    assert seen["prompts"] == ["Say:", "Say:"]
    assert seen["completions"] == [" yes", " no"]
    assert seen["topic"] == ["yes", "no"]
    assert seen["ids"][0] == [*byte_tokenizer()(" yes")["input_ids"], 256]
    assert "reference" not in seen["others"]


def test_conversations_are_scored_as_in_ppo(tmp_path):
    seen = []

    def watch(prompts, completions, completion_ids, **others):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(sum(ids)) for ids in completion_ids]

    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chats(pairs(3))]
    scored(tmp_path, rows, watch, held_out_share=0.0)
    prompt, completion, ids = seen[0]
    assert prompt == rows[0]["messages"][:-1]
    assert completion == [{"role": "assistant", "content": rows[0]["messages"][-1]["content"]}]
    assert ids == [*byte_tokenizer()(completion[0]["content"])["input_ids"], 256]


def test_texts_without_prompts(tmp_path):
    trained = scored(tmp_path, [{"text": "yes"}, {"text": "no more"}], held_out_share=0.0)
    first, second = trained.run.examples.train
    assert first.row == [*byte_tokenizer()("yes")["input_ids"], 256]
    assert (first.target, second.target) == (3, 7)


def test_both_texts_of_a_pair_are_scored_whatever_their_label(tmp_path):
    trained = scored(tmp_path, pairs(5), lambda completions, **c: [worth(t) for t in completions], held_out_share=0.0)
    targets = [grade.target for grade in trained.run.examples.train]
    assert targets == [worth(row[side]) for row in pairs(5) for side in ("chosen", "rejected")]


# --- What is learnt


@pytest.mark.parametrize("normalize", ["level", slow("none")])
def test_a_weighted_sum_is_learnt_and_the_saved_model_gives_it(tmp_path, normalize):
    def share(completions, **columns):
        return [text.count("h") for text in completions]

    rows = answered(pairs(400))
    trained = scored(
        tmp_path, rows, share, first_letter, reward_weights=(2.0, 10.0), num_train_epochs=6.0, learning_rate=5e-3,
        per_device_train_batch_size=16, normalize=normalize,
    )  # fmt: skip
    folder = trained.train()
    found = trained.report.held_out
    assert found.pearson > 0.9
    assert found.explained_variance > 0.8
    wanted = [grade.target for grade in trained.run.examples.held_out]
    assert wanted[0] in {2.0 * count + 10.0 * first for count in range(5) for first in range(2)}
    model = load_scalar_model(str(folder), role="reward_model", dtype=torch.float32)
    scorer = make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=256)
    scores = scorer.score([grade.row for grade in trained.run.examples.held_out])
    left_out = trained.report.left_out
    mean = sum(grade.target for grade in trained.run.examples.train) / len(trained.run.examples.train)
    assert left_out == (0 if normalize == "level" else pytest.approx(mean))
    scores = scores + left_out
    error = (scores - torch.tensor(wanted)).square().mean().item()
    assert error == pytest.approx(found.mean_squared_error, rel=1e-4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["objective"] == "regression"
    assert report["unit"] == "texts"
    assert report["normalized"] == normalize


def test_pairs_that_functions_label(tmp_path):
    trained = scored(
        tmp_path, pairs(200), lambda completions, **c: [worth(t) for t in completions], objective="pairwise",
        num_train_epochs=3.0, learning_rate=3e-3, min_score_gap=0.5, per_device_train_batch_size=16,
    )  # fmt: skip
    for comparison in trained.run.examples.train:
        (label,) = comparison.labels
        assert label.margin > 0.5
    assert trained.run.examples.objective.margins == 0
    trained.train()
    assert trained.report.held_out.accuracy > 0.75
    assert trained.report.held_out.by_label_gap


def test_every_two_answers_that_differ_enough_make_a_pair():
    scored = Scored([[1], [2], [3], [1]], [1.0, 3.0, 2.5, 1.0], "prompt")
    comparison = comparison_of(scored, 0.5)
    assert comparison.rows == ([1], [2], [3])
    assert {(label.better, label.worse, label.margin) for label in comparison.labels} == {
        (1, 0, 2),
        (2, 0, 1.5),
    }


# --- Texts by the model itself


def test_prompts_alone_are_answered_by_the_model(tmp_path, capsys):
    trained = scored(tmp_path, QUESTIONS, num_generations=3, response_length=6, held_out_share=0.0)
    rows = trained.run.examples.train
    start = byte_tokenizer()("Word 0:")["input_ids"]
    assert len(rows) == 90
    assert all(grade.row[: len(start)] == start for grade in rows[:3])
    assert len({tuple(grade.row) for grade in rows[:3]}) == 3
    lengths = [len(grade.row) - len(byte_tokenizer()(f"Word {n // 3}:")["input_ids"]) for n, grade in enumerate(rows)]
    # One that was cut off has no EOS to be read at.
    assert {length for grade, length in zip(rows, lengths, strict=True) if grade.row[-1] != 256} == {6}
    assert all(0 < length <= 6 for length in lengths)
    assert "The model wrote 3 texts to each of them." in trained.run.examples.sentences


def test_the_same_seed_writes_the_same_texts(tmp_path):
    def rows(seed):
        trained = scored(tmp_path, QUESTIONS, response_length=5, seed=seed, held_out_share=0.0)
        return [grade.row for grade in trained.run.examples.train]

    assert rows(1) == rows(1) != rows(2)


@pytest.mark.slow
def test_seed_c(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = base_folder(tmp_path / "base")
    reward_trainer = RewardModelTrainer(
        RewardConfig(use_cpu=True, num_texts=40, response_length=8),
        base_model_name=str(base),
        reward_functions=[length, first_letter],
        composite_weights=[0.7, 0.3],
    )
    reward_model_path = reward_trainer.train()
    assert (reward_model_path / "model.safetensors").is_file()
    assert reward_trainer.run.config.reward_weights == (0.7, 0.3)


def test_reward_functions_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def vowels(completions, **columns):\n    return [t.count('a') + t.count('e') for t in completions]\n"
    )
    trained = trainer(tmp_path / "out", answered(pairs(10)), reward_funcs=f"{file}:vowels", held_out_share=0.0)
    assert {grade.target for grade in trained.run.examples.train} <= {0, 1, 2, 3, 4}
    named = RewardConfig(reward_funcs=(f"{file}:vowels",))
    assert named.reward_funcs == (f"{file}:vowels",)


# --- What is refused


@pytest.mark.parametrize(
    ("rows", "functions", "changes", "error", "words"),
    [
        (pairs(3), (), {"objective": "regression"}, ConfigError, "no source gives any"),
        (answered(pairs(3)), (length,), {"reward_weights": (1.0, 2.0)}, ConfigError, r"2 reward weight\(s\) for 1"),
        (answered(pairs(3)), (length,), {}, DataError, "all 3 texts got the same score, 4"),
        (answered(pairs(3)), (length,), {"objective": "pairwise"}, DataError, "there are no pairs"),
        (answered(pairs(3)), (lambda completions, topic: [1.0]), {}, RewardError, "requires 'topic'"),
        (answered(pairs(3)), (lambda completions: [math.nan] * 3), {}, RewardError, "a reward must be finite"),
        (answered(pairs(3)), (lambda completions: 1 / 0), {}, RewardError, "ZeroDivisionError"),
        (QUESTIONS, (length,), {"response_length": 600}, ConfigError, "together are more"),
        (QUESTIONS, (length,), {"model": tiny_scalar_model()}, ConfigError, "cannot write texts"),
        ([{"text": " "}], (length,), {}, DataError, "the text is empty"),
    ],
)
def test_refusals(tmp_path, rows, functions, changes, error, words):
    given = functions if isinstance(functions, tuple) else (functions,)
    with pytest.raises(error, match=words):
        trainer(tmp_path / "out", rows, reward_funcs=given, **{"held_out_share": 0.0, **changes})
    assert not (tmp_path / "out").exists()


def test_one_name_for_the_model_is_enough(tmp_path):
    with pytest.raises(ConfigError, match="the same: give one"):
        RewardModelTrainer(model=tiny_causal_lm(), base_model_name="x")


def test_texts_end_with_every_end_that_the_model_means():
    """The same ends as in PPO; the end itself is no part of the text."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    model = tiny_causal_lm(vocab_size=259)
    model.generation_config.eos_token_id = [256, 258]
    with torch.no_grad():
        model.lm_head.weight[258] = model.model(torch.tensor([[5, 6]])).last_hidden_state[0, -1] * 0.7
    config = RewardConfig(use_cpu=True, response_length=6, num_generations=8)
    writer = Writer(
        config,
        model,
        tokenizer,
        model.config,
        Limits.of(model.config, "the model"),
        torch.float32,
        torch_backend(use_cpu=True),
    )
    [texts] = writer.answer([[5, 6]], [""])
    assert any(each.finished and each.ids[-1] == 258 for each in texts)
    for each in texts:
        assert 258 not in each.ids[:-1]
        assert "<end_of_turn>" not in each.text
