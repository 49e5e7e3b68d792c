"""`nearstep score` gives what training logged, to the last bit, and scores files of texts by the same path."""

import csv
import json

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import DataError
from nearstep.data.templates import TEMPLATES
from nearstep.evaluation.episodes import read_episodes, rollout_of
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

REWARDS = """
def matches(completions, answer, log_extra, **kwargs):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    log_extra("length", [len(text) for text in texts])
    return [None if a is None else sum(c in a for c in text) / 3 for text, a in zip(texts, answer, strict=True)]

def tokens(completion_ids, **kwargs):
    return [[token / 1000 for token in ids] for ids in completion_ids]

def picky(completions, **kwargs):
    if "bad" in completions:
        raise ValueError("not this one")
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def folder(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    tiny_scalar_model().save_pretrained(tmp_path / "scorer")
    byte_tokenizer(shift=7).save_pretrained(tmp_path / "scorer")  # reads text, not ids
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def rewards_of(folder, *names):
    return ["--reward_funcs", *(f"{folder / 'rewards.py'}:{name}" for name in names)]


def train(folder, prompts, *words):
    rows = [{"prompt": prompt, "answer": "abc" if row % 3 else None} for row, prompt in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main([
        "ppo", "--model_name_or_path", str(folder / "policy"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--output_dir", str(folder / "run"), "--total_episodes", "16", "--batch_size", "8", "--response_length", "7",
        "--use_cpu", "--num_sample_generations", "0", "--learning_rate", "1e-3", *words,
    ]) == 0  # fmt: skip
    return read(folder / "run" / "rollouts.jsonl")


def score(folder, input, *words):
    assert main([
        "score", "--input", str(input), "--output", str(folder / "scores.jsonl"), "--use_cpu",
        "--model_name_or_path", str(folder / "policy"), *words,
    ]) == 0  # fmt: skip
    return read(folder / "scores.jsonl")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


CHATS = [[{"role": "user", "content": f"chat {row}"}] for row in range(4)]
TEXTS = [f"text {row}: é" for row in range(8)]


@pytest.mark.parametrize("prompts", [slow(TEXTS), CHATS], ids=["texts", "chats"])
@pytest.mark.parametrize("workers", [slow(((),)), ("--reward_workers", "1")], ids=["here", "workers"])
def test_scores_of_a_run_are_those_that_it_logged(folder, prompts, workers, capsys):
    rewards = [
        "--reward_model_path", str(folder / "scorer"), *rewards_of(folder, "matches", "tokens"),
        "--reward_weights", "0.3", "1.7", "0.9", *workers,
    ]  # fmt: skip
    logged = train(folder, prompts, *rewards)
    scored = score(folder, folder / "run" / "rollouts.jsonl", *rewards)
    assert len(scored) == len(logged) == 16
    for ours, theirs in zip(scored, logged, strict=True):
        for name in ("episode", "total_score", "scores", "token_rewards", "extras"):
            assert ours[name] == theirs[name]
    assert [line["row"] for line in scored] == list(range(16))
    said = capsys.readouterr().out
    assert "16 of 16 totals equal what the run recorded; the largest difference is 0." in said


@pytest.mark.slow
def test_a_difference_from_the_run_is_told(folder, capsys):
    train(folder, TEXTS, *rewards_of(folder, "tokens"))
    score(folder, folder / "run" / "rollouts.jsonl", *rewards_of(folder, "tokens"), "--reward_weights", "2")
    assert "0 of 16 totals equal" in capsys.readouterr().out


@pytest.mark.slow
def test_dropped_rows_of_a_run_are_dropped_again(folder):
    """A row whose completion the function refuses in training is refused here for the same reason."""
    words = [*rewards_of(folder, "picky"), "--on_reward_error", "drop"]
    train(folder, TEXTS, *words)
    path = folder / "run" / "rollouts.jsonl"
    records = read(path)
    records[3] = {**records[3], "completion_ids": byte_tokenizer()("bad")["input_ids"], "finished": False}
    path.write_text("\n".join(map(json.dumps, records)))
    scored = score(folder, path, *words)
    assert [line["total_score"] is None for line in scored] == [row == 3 for row in range(16)]
    assert "not this one" in scored[3]["failures"]["picky"]


ROWS = [
    {"prompt": "one", "completion": "abc", "answer": "abc"},
    {"prompt": "two", "completion": "", "answer": "abc"},
    {"prompt": "three", "completion": "xbx", "answer": "abc"},
]


def written(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind_are_scored(folder, suffix, capsys):
    path = written(folder / f"texts.{suffix}", ROWS)
    scored = score(folder, path, *rewards_of(folder, "matches", "tokens"), "--batch_size", "2")
    assert [line["scores"]["matches"] for line in scored] == pytest.approx([1.0, 0.0, 1 / 3])
    ids = [[*byte_tokenizer()(row["completion"])["input_ids"], 256] for row in ROWS]  # each has ended
    assert [line["token_rewards"] for line in scored] == [pytest.approx([t / 1000 for t in row]) for row in ids]
    said = capsys.readouterr().out
    assert "3 rows" in said
    assert "totals equal" not in said


def test_completions_are_not_handed_to_rewards_as_references(folder):
    (folder / "seen.py").write_text(
        "def seen(completions, **rest): return [float('reference' in rest)] * len(completions)"
    )
    path = written(folder / "plain.jsonl", [{"prompt": "p", "completion": "x"}])
    scored = score(folder, path, "--reward_funcs", f"{folder}/seen.py:seen")
    assert [line["scores"]["seen"] for line in scored] == [0.0]


def test_what_is_printed_adds_up(folder, capsys):
    rows = [{"prompt": "p", "completion": "x" * length} for length in range(1, 6)]
    rows.append({"prompt": "p", "completion": "bad"})
    score(folder, written(folder / "t.jsonl", rows), *rewards_of(folder, "picky"), "--on_reward_error", "drop")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["6", "rows", "picky", "total"] in lines
    for statistic, number in {
        "scored": "5", "failed": "1", "mean": "3", "std": "1.414", "min": "1", "5%": "1.2", "25%": "2", "50%": "3",
        "75%": "4", "95%": "4.8", "max": "5",
    }.items():  # fmt: skip
        assert [statistic, number, number] in lines


def test_messages_and_unfinished_completions_are_taken(folder):
    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": chat, "completion": [{"role": "assistant", "content": "abc"}], "finished": True, "answer": "abc"},
        {"prompt": chat, "completion": "abc", "finished": False, "answer": "abc"},
    ]
    scored = score(folder, written(folder / "t.jsonl", rows), *rewards_of(folder, "matches", "tokens"))
    assert [line["scores"]["matches"] for line in scored] == [1.0, 1.0]
    assert [len(line["token_rewards"]) for line in scored] == [4, 3]


def test_a_reply_that_has_ended_ends_as_the_chat_template_ends_it(folder):
    """And a text with EOS: what rewards per token and reward models get is what a policy would have written."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = TEMPLATES["chatml"]
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": "a"}, {"prompt": "Hi", "completion": "a"}]
    [episodes] = read_episodes(str(written(folder / "t.jsonl", rows)), tokenizer, batch_size=5).batches()
    a = tokenizer("a")["input_ids"]
    assert episodes.rollout.completion_ids() == [[*a, 258], [*a, 256]]


def test_episodes_are_made_batch_by_batch_after_all_rows_were_checked(folder, monkeypatch):
    made = []

    def counted(ids, *rest):
        made.append(len(ids))
        return rollout_of(ids, *rest)

    monkeypatch.setattr("nearstep.evaluation.episodes.rollout_of", counted)
    rows = [{"prompt": "p", "completion": "x"}] * 5
    file = read_episodes(str(written(folder / "t.jsonl", rows)), byte_tokenizer(), batch_size=2)
    assert made == []
    batches = file.batches()
    assert (next(batches).first, made) == (0, [2])
    assert ([each.first for each in batches], made) == ([2, 4], [2, 2, 1])
    with pytest.raises(DataError, match="line 6, column 'completion'"):
        read_episodes(str(written(folder / "t.jsonl", [*rows, {"prompt": "p"}])), byte_tokenizer(), batch_size=2)


WRONG = {
    "no column 'completion'": [{"prompt": "p"}],
    "line 2, column 'completion': must be text": [{"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": 3}],
    "line 1, column 'finished': must be true or false": [{"prompt": "p", "completion": "c", "finished": "yes"}],
    "requires 'answer', which the data set does not give": [{"prompt": "p", "completion": "c"}],
}


@pytest.mark.parametrize(("words", "rows"), WRONG.items(), ids=WRONG)
def test_what_cannot_be_scored_names_its_place(folder, words, rows, capsys):
    before = folder / "scores.jsonl"
    before.write_text("kept")
    assert main([
        "score", "--input", str(written(folder / "t.jsonl", rows)), "--output", str(before), "--use_cpu",
        "--model_name_or_path", str(folder / "policy"), *rewards_of(folder, "matches"),
    ]) == 1  # fmt: skip
    assert words in capsys.readouterr().err
    assert before.read_text() == "kept"


def test_what_a_command_lacks_is_told_at_once(capsys, tmp_path):
    assert main(["score", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for words in ("input is missing", "model_name_or_path is missing", "is a folder; give a file", "no reward: give"):
        assert words in said


@pytest.mark.slow
def test_rows_of_a_run_are_scored_together_as_its_updates_had_them(folder):
    train(folder, TEXTS, *rewards_of(folder, "tokens"))
    batches = list(read_episodes(str(folder / "run" / "rollouts.jsonl"), byte_tokenizer(), batch_size=3).batches())
    assert [(batch.first, len(batch.prompts)) for batch in batches] == [(0, 8), (8, 8)]
