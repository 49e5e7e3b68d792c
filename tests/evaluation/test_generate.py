"""`nearstep generate` writes what the engine of training writes, and its files go on into the other commands."""

import csv
import json

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import ConfigError
from nearstep.common.model_places import model_place
from nearstep.config.generating import GenerateOptions
from nearstep.evaluation import generate_file as module
from nearstep.evaluation.completion_file import CompletionFile
from nearstep.models.distribution import Sampling
from nearstep.models.roles import make_policy
from nearstep.rewards.decoding import completion_text
from nearstep.rollout.engine import EngineSettings, GenerationSettings
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts
from tests.tiny import byte_tokenizer, tiny_causal_lm

ROWS = [
    {
        "prompt": f"text {row}: é🙂",
        "answer": row,
        "finished": "mine",
        "notes": {"a": [1, float(row)]},
        "completion": "x",
    }
    for row in range(5)
]


@pytest.fixture
def folder(tmp_path):
    policy = tmp_path / "run" / "checkpoint-3" / "policy"
    tiny_causal_lm().save_pretrained(policy)
    byte_tokenizer().save_pretrained(policy)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def generate(folder, *words, model=None, data="prompts.jsonl", output="out.jsonl", code=0):
    assert main([
        "generate", "--model_name_or_path", str(model or f"{folder}/run@3"), "--dataset_name", str(folder / data),
        "--output", str(folder / output), "--response_length", "6", "--use_cpu", *words,
    ]) == code  # fmt: skip
    return folder / output


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_completions_are_those_of_the_engine_of_training(folder):
    """Sampled: each from the stream of its own number, whatever is worked on at a time."""
    words = ("--num_generations", "2", "--temperature", "0.8", "--top_p", "0.9", "--seed", "7")
    lines = read(generate(folder, *words, "--batch_size", "3"))
    tokenizer = byte_tokenizer()
    ids = [tokenizer(row["prompt"])["input_ids"] for row in ROWS for _ in range(2)]
    prompts = Prompts(ids, [""] * 10, {}, list(range(10)))
    engine = TransformersEngine(EngineSettings())
    engine.load(make_policy(tiny_causal_lm(), vocabulary=258), 0)
    rollout = engine.generate(prompts, GenerationSettings(Sampling(0.8, 0.9), 6, (256,), 7, vocabulary=258))
    said = zip(rollout.completion_ids(), rollout.finished.tolist(), strict=True)
    assert [line["completion"] for line in lines] == [completion_text(*each, tokenizer) for each in said]
    assert [(line["row"], line["sample"]) for line in lines] == [(row, s) for row in range(5) for s in range(2)]
    again = read(generate(folder, *words, "--batch_size", "64", "--max_tokens_per_microbatch", "40"))
    assert again == lines


def test_every_column_is_carried_over_and_none_is_taken_for_another(folder):
    [line, *_] = read(generate(folder))
    assert line["prompt"] == ROWS[0]["prompt"]
    assert line["finished"] in (True, False)
    assert line["data_finished"] == "mine"
    assert line["reference"] == "x"  # the answer in the data
    assert (line["answer"], line["notes"], line["place"]) == (0, {"a": [1, 0.0]}, "line 1")


def test_greedy_is_what_is_done_unless_sampling_is_asked_for(folder):
    assert read(generate(folder)) == read(generate(folder, "--temperature", "0", "--seed", "9"))
    assert not GenerateOptions().samples
    assert GenerateOptions(temperature=0.7).samples
    assert GenerateOptions(num_generations=4).samples
    with pytest.raises(ConfigError, match="are all the same"):
        GenerateOptions(num_generations=4, do_sample=False)


def test_csv_holds_the_same_and_is_read_again(folder):
    lines = read(generate(folder))
    with generate(folder, output="out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines, strict=True):
        assert row["completion"] == line["completion"]
        assert row["finished"] == str(line["finished"]).lower()
        assert json.loads(row["notes"]) == line["notes"]
    for name in ("out.jsonl", "out.csv"):
        assert main([
            "score", "--input", str(folder / name), "--output", str(folder / f"{name}.scores"), "--use_cpu",
            "--model_name_or_path", f"{folder}/run/checkpoint-3/policy", "--reward_funcs", "length",
        ]) == 0  # fmt: skip
    scores = [[line["total_score"] for line in read(folder / f"{n}.scores")] for n in ("out.jsonl", "out.csv")]
    assert scores[0] == scores[1]


def test_chats_stay_chats(folder):
    chat = [{"role": "user", "content": "Hi"}]
    (folder / "chats.jsonl").write_text(json.dumps({"prompt": chat}))
    [line] = read(generate(folder, data="chats.jsonl"))
    assert line["prompt"] == chat
    [asked] = read(generate(folder, "--prompt_type", "chat", "--max_samples", "1"))
    assert asked["prompt"][0]["role"] == "user"
    generate(folder, data="chats.jsonl", output="chats.csv", code=2)


def test_what_was_interrupted_goes_on(folder, monkeypatch, capsys):
    whole = generate(folder, "--num_generations", "2", "--batch_size", "1").read_text()
    (folder / "out.jsonl").write_text("of an earlier run")
    monkeypatch.setattr("nearstep.evaluation.writing.CALLS_OF", 3)
    write, calls = CompletionFile.write, []

    def interrupted(self, records):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(records))
        write(self, records)

    with monkeypatch.context() as patched:
        patched.setattr(CompletionFile, "write", interrupted)
        generate(folder, "--num_generations", "2", "--batch_size", "1", code=130)
    assert (folder / "out.jsonl").read_text() == "of an earlier run"
    with (folder / "out.jsonl.unfinished").open("a") as file:
        file.write('{"row": 3, "sam')  # torn by the end of the process
    generate(folder, "--num_generations", "2", "--seed", "5", "--resume", code=2)
    assert "seed was 42" in capsys.readouterr().err
    assert generate(folder, "--num_generations", "2", "--batch_size", "2", "--resume").read_text() == whole
    assert "4 completions of 5 prompts after the 6 that were there" in capsys.readouterr().out
    assert sorted(path.name for path in folder.glob("out*")) == ["out.jsonl"]


def test_other_data_is_not_gone_on_with(folder, monkeypatch, capsys):
    def broken(self, records):
        write(self, records)
        raise KeyboardInterrupt

    write = CompletionFile.write
    with monkeypatch.context() as patched:
        patched.setattr(CompletionFile, "write", broken)
        generate(folder, code=130)
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "another"}))
    generate(folder, "--resume", code=1)
    assert "the data changed" in capsys.readouterr().err


def test_what_is_lacking_is_told_before_weights_are_loaded(folder, capsys):
    assert main(["generate", "--output", "x.txt"]) == 2
    said = capsys.readouterr().err
    for words in ("model_name_or_path is missing", "dataset_name is missing", "must end in .jsonl or .csv"):
        assert words in said
    generate(folder, model=f"{folder}/run@7", code=2)
    assert "has no checkpoint of update 7: there are those of updates 3" in capsys.readouterr().err
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "x" * 600}))
    generate(folder, data="long.jsonl", code=1)
    assert "600 tokens, and at most 506 are allowed" in capsys.readouterr().err
    [cut] = read(generate(folder, "--on_long_prompt", "cut_left", data="long.jsonl"))
    assert len(cut["prompt"]) == 600


def test_places_of_models(folder):
    policy = str(folder / "run" / "checkpoint-3" / "policy")
    assert model_place(f"{folder}/run@3") == model_place(f"{folder}/run/checkpoint-3") == model_place(policy) == policy
    assert model_place("owner/name") == "owner/name"


@pytest.mark.slow
def test_adapters_write_on_their_base(folder):
    peft = pytest.importorskip("peft")
    base = folder / "run" / "checkpoint-3" / "policy"
    model = tiny_causal_lm()
    model.name_or_path = str(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    plain = read(generate(folder))
    with_adapters = read(generate(folder, model=folder / "adapter"))
    assert [line["completion"] for line in with_adapters] != [line["completion"] for line in plain]
    base.rename(folder / "moved")
    generate(folder, model=folder / "adapter", code=1)
    moved = read(generate(folder, "--base_model", str(folder / "moved"), model=folder / "adapter"))
    assert moved == with_adapters


def test_the_summary_counts(folder):
    options = GenerateOptions(
        model_name_or_path=f"{folder}/run@3", dataset_name=str(folder / "prompts.jsonl"), response_length=6,
        output=str(folder / "out.jsonl"), use_cpu=True,
    )  # fmt: skip
    summary = module.generate_file(options)
    lines = read(folder / "out.jsonl")
    assert summary.completions == 5
    assert summary.finished == sum(line["finished"] for line in lines)
    assert summary.tokens == sum(line["response_length"] for line in lines)


def test_a_model_without_a_template_is_given_the_text_beside_the_chats(folder, capsys):
    """As training takes it; the recorded answers stay references (the data set of TRL's TL;DR scripts)."""
    (folder / "run" / "checkpoint-3" / "policy" / "chat_template.jinja").unlink()
    rows = [
        {"prompt": f"post {row}", "messages": [
            {"role": "user", "content": "as a chat"}, {"role": "assistant", "content": f"answer {row}"},
        ]}
        for row in range(2)
    ]  # fmt: skip
    (folder / "tldr.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = read(generate(folder, data="tldr.jsonl"))
    assert [(line["prompt"], line["reference"]) for line in lines] == [("post 0", "answer 0"), ("post 1", "answer 1")]
    assert "has no chat template, so prompts are the text of 'prompt'" in capsys.readouterr().err
