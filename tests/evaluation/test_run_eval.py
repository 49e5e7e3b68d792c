"""`run_eval` gives the numbers of plain transformers, takes the names of AlignTune's page, and says what it lacks."""

import importlib.util
import json
import math

import pytest
import torch

from nearstep import EvalConfig, run_eval
from nearstep.cli.main import main
from nearstep.common.errors import ConfigError, DataError, ModelError
from nearstep.evaluation.evidence import Evidence
from nearstep.evaluation.results import EvalResults
from nearstep.rewards.reading import EpisodeReader
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

REWARDS = """
def vowels(completions, **rest):
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [float(sum(letter in "aeiou" for letter in text)) for text in texts]

def some(completions, **rest):
    return [None if "none" in text else 1.0 for text in completions]

def picky(completions, **rest):
    if "bad" in completions:
        raise ValueError("not this one")
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def folder(tmp_path):
    for name, model in (
        ("policy", tiny_causal_lm()),
        ("start", tiny_causal_lm(seed=5)),
        ("scorer", tiny_scalar_model()),
    ):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def evaluate(folder, **settings):
    return run_eval(EvalConfig(output_dir=str(folder / "out"), use_cpu=True, bootstrap_draws=100, **settings))


SFT = [
    {"prompt": "one", "completion": "answer é"},
    {"prompt": "two two", "completion": "b"},
    {"prompt": "three", "completion": "ccc"},
]


def nll_by_transformers(model, rows, *, end=True, temperature=1.0):
    """Per row the sum of −log p over the completion, and its number of tokens."""
    tokenizer, found = byte_tokenizer(), []
    for row in rows:
        before, said = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        said = [*said, 256] if end else said
        with torch.no_grad():
            logprobs = (model(torch.tensor([before + said])).logits[0] / temperature).log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(said) - 1)
        found.append(
            (-sum(logprobs[place, token].item() for place, token in zip(places, said, strict=True)), len(said))
        )
    return found


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.bfloat16), slow(torch.float16)])
def test_perplexity_is_that_of_transformers(folder, end, dtype):
    model = tiny_causal_lm().to(dtype)
    model.save_pretrained(folder / "narrow")
    byte_tokenizer().save_pretrained(folder / "narrow")
    results = evaluate(
        folder, model_path=str(folder / "narrow"), dataset_name=write(folder / "sft.jsonl", SFT),
        metrics=["perplexity"], count_end=end, batch_size=2, max_tokens_per_microbatch=12,
    )  # fmt: skip
    rows = nll_by_transformers(model.float(), SFT, end=end)
    nll, tokens = sum(each for each, _ in rows), sum(count for _, count in rows)
    assert results["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert results["bits_per_byte"] == pytest.approx(nll / math.log(2) / 13, rel=1e-4)
    figure = results.figures["perplexity"]
    assert (figure.n, figure.prompts) == (tokens, 3)
    assert figure.low < figure.value < figure.high


def test_the_call_of_aligntunes_page(folder):
    """Its names, its data's shape: a conversation beside its first message, and no pairs."""
    rows = [
        {
            "prompt": "Hi",
            "prompt_id": "7",
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "x" * 500},
                {"role": "assistant", "content": "the last answer"},
            ],
        }
    ] * 3
    (folder / "ultrachat").mkdir()
    write(folder / "ultrachat" / "test_sft.jsonl", rows)
    config = EvalConfig(
        model_path=str(folder / "policy"),
        output_dir=str(folder / "eval_results" / "ppo"),
        # Task configuration
        task_type="text",
        data_task_type="sft",
        # Metrics
        metrics=["perplexity", "reward_accuracy"],
        # Dataset
        dataset_name=str(folder / "ultrachat"),
        split="test_sft",
        max_samples=100,
        # Generation
        max_length=512,
        temperature=0.7,
        batch_size=8,
    )
    results = run_eval(config)
    assert isinstance(results, EvalResults)
    assert results["reward_accuracy"] is None
    assert results.figures["perplexity"].n == 3 * (len("the last answer") + 1)
    assert "3 of 3 answers were cut with their prompts to 512 tokens." in results.notes
    saved = json.loads((folder / "eval_results" / "ppo" / "eval_results.json").read_text())
    assert saved["metrics"]["perplexity"]["value"] == results["perplexity"]
    assert saved["metrics"]["reward_accuracy"]["value"] is None
    assert saved["metrics"]["reward_accuracy"]["why"] == "the data holds no preference pairs"
    assert saved["settings"]["max_length"] == 512


PAIRS = [
    {"prompt": "p", "chosen": "aaa", "rejected": "b", "subset": "easy"},
    {"prompt": "q", "chosen": "xx", "rejected": "yy", "subset": "hard"},  # a tie by vowels
    {"prompt": "r", "chosen": "x", "rejected": "ee", "subset": "hard"},
    {"prompt": "s", "chosen": "uu", "rejected": "z", "subset": "hard"},
]


def test_reward_accuracy_of_a_function_by_hand(folder):
    results = evaluate(
        folder, dataset_name=write(folder / "pairs.jsonl", PAIRS), reward_funcs=[f"{folder}/rewards.py:vowels"]
    )
    assert results["reward_accuracy"] == 2.5 / 4
    assert results["reward_margin"] == (3 + 0 - 2 + 2) / 4
    assert (results["reward_accuracy/easy"], results["reward_accuracy/hard"]) == (1.0, 0.5)
    assert results["rewardbench"] == 0.75
    assert results.figures["reward_accuracy"].interval == "Wilson"


def test_reward_accuracy_of_a_reward_model_is_that_of_its_training(folder):
    """It reads the texts as `nearstep reward` does: EOS behind each."""
    reader, model = EpisodeReader(byte_tokenizer()), tiny_scalar_model()

    def score(row, side):
        ids = reader.read(row["prompt"], row[side], finished=True)
        with torch.no_grad():
            return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()

    gaps = [score(row, "chosen") - score(row, "rejected") for row in PAIRS]
    results = evaluate(
        folder, dataset_name=write(folder / "pairs.jsonl", PAIRS), reward_model_path=str(folder / "scorer"),
        metrics=["reward_accuracy"],
    )  # fmt: skip
    assert results["reward_accuracy"] == sum(gap > 0 for gap in gaps) / 4
    assert results["reward_margin"] == pytest.approx(sum(gaps) / 4, abs=1e-5)


def test_without_rewards_the_model_itself_prefers(folder):
    pairs = write(folder / "pairs.jsonl", PAIRS)
    settings = {"model_path": str(folder / "policy"), "dataset_name": pairs, "metrics": ["reward_accuracy"]}

    def sums(model):
        sides = [
            [{"prompt": row["prompt"], "completion": row[side]} for row in PAIRS] for side in ("chosen", "rejected")
        ]
        better, worse = ([-nll for nll, _ in nll_by_transformers(model, rows)] for rows in sides)
        return [a - b for a, b in zip(better, worse, strict=True)]

    policy, start = sums(tiny_causal_lm()), sums(tiny_causal_lm(seed=5))
    alone = evaluate(folder, **settings)
    assert alone["reward_margin"] == pytest.approx(sum(policy) / 4, abs=1e-4)
    assert "log-probability under the model" in " ".join(alone.notes)
    both = evaluate(folder, **settings, reference_model_path=str(folder / "start"))
    assert both["reward_margin"] == pytest.approx(0.1 * (sum(policy) - sum(start)) / 4, abs=1e-4)


def test_rewardbench_2_by_hand(folder):
    """By vowels. Focus: one right, one shared by two. Ties: as tests/evaluation/metrics has it."""
    rows = [
        _many("1", "Focus", ["aaa"], ["a", "b", "c"]),
        _many("2", "Focus", ["aa"], ["ee", "b", "c"]),
        _many("ref:4", "Ties", ["aaa"], ["ee", "e"]),
        _many("tied:4", "Ties", ["aaaaa", "aaaa"], ["ee"]),
    ]
    results = evaluate(
        folder, dataset_name=write(folder / "rb2.jsonl", rows), reward_funcs=[f"{folder}/rewards.py:vowels"]
    )
    ties = 0.3 + 0.3 + 0.2 * 1 + 0.2 * 0 + 0.01 * math.tanh(1 / 1 - 1)
    assert results["rewardbench/Focus"] == 0.75
    assert results["rewardbench/Ties"] == pytest.approx(ties)
    assert results["rewardbench"] == pytest.approx((0.75 + ties) / 2)
    assert set(results) == {"rewardbench", "rewardbench/Focus", "rewardbench/Ties"}


def _many(number, subset, chosen, rejected):
    total = len(chosen) + len(rejected)
    return {
        "id": number, "prompt": f"prompt {number}", "chosen": chosen, "rejected": rejected, "num_correct": len(chosen),
        "num_incorrect": len(rejected), "total_completions": total, "models": ["m"] * total, "subset": subset,
        "additional_metadata": None,
    }  # fmt: skip


def test_broken_rows_of_rewardbench_2_are_named(folder):
    rows = [_many("1", "Focus", ["aaa"], ["a"]), {**_many("2", "Focus", ["a"], ["b"]), "num_correct": 3}]
    settings = {"reward_funcs": [f"{folder}/rewards.py:vowels"]}
    with pytest.raises(DataError, match="line 2: num_correct is 3, and there are 1"):
        evaluate(folder, dataset_name=write(folder / "rb2.jsonl", rows), **settings)
    with pytest.raises(DataError, match="ref:N or tied:N, got '7'"):
        evaluate(folder, dataset_name=write(folder / "rb2.jsonl", [_many("7", "Ties", ["a"], ["b"])]), **settings)


def test_kl_and_entropy_are_over_the_whole_vocabulary(folder):
    """Along the model's own completions, at the temperature of sampling."""
    results = evaluate(
        folder, model_path=str(folder / "policy"), reference_model_path=str(folder / "start"), temperature=0.7,
        dataset_name=write(folder / "p.jsonl", [{"prompt": row["prompt"]} for row in SFT]), response_length=5,
        metrics=["kl", "entropy", "length"],
    )  # fmt: skip
    written = [json.loads(line) for line in (folder / "out" / "completions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in written] == [row["prompt"] for row in SFT]
    # Bytes that are no UTF-8 do not survive as text, so the ids are made again.
    answers = Evidence(
        EvalConfig(model_path=str(folder / "policy"), dataset_name=str(folder / "p.jsonl"), response_length=5,
                   temperature=0.7, use_cpu=True, metrics=["entropy"])
    ).answers  # fmt: skip
    kl, entropy, tokens = 0.0, 0.0, 0
    for before, said in zip(answers.prompts.ids, answers.said, strict=True):
        places = slice(len(before) - 1, len(before) + len(said) - 1)
        with torch.no_grad():
            now, start = (
                (model(torch.tensor([before + said])).logits[0, places] / 0.7).log_softmax(-1)
                for model in (tiny_causal_lm(), tiny_causal_lm(seed=5))
            )
        kl += (now.exp() * (now - start)).sum().item()
        entropy -= (now.exp() * now).sum().item()
        tokens += len(said)
    assert results["kl"] == pytest.approx(kl / 3, rel=1e-4)
    assert results["kl_per_token"] == pytest.approx(kl / tokens, rel=1e-4)
    assert results["entropy"] == pytest.approx(entropy / tokens, rel=1e-4)
    assert results["response_length"] == pytest.approx(tokens / 3)


def test_a_model_has_no_kl_to_itself(folder):
    results = evaluate(
        folder, model_path=str(folder / "policy"), reference_model_path=str(folder / "policy"), response_length=4,
        dataset_name=write(folder / "p.jsonl", [{"prompt": "a"}]), metrics=["kl"],
    )  # fmt: skip
    assert results["kl"] == pytest.approx(0, abs=1e-6)


FILE = [
    {"prompt": "1+1", "completion": "the answer is 2", "answer": "2", "reference": "two"},
    {"prompt": "1+1", "completion": "it is 3", "answer": "2", "reference": "two"},
    {"prompt": "2+2", "completion": "", "answer": "4", "reference": "eee"},
    {"prompt": "2+2", "completion": "answer: 4", "answer": "4", "reference": "eee", "finished": False},
]


def test_a_file_of_completions_needs_no_model(folder):
    """vowels: 4, 2, 0, 2 against references of 1, 1, 3, 3."""
    results = evaluate(
        folder, completions=write(folder / "c.jsonl", FILE), reward_funcs=[f"{folder}/rewards.py:vowels"],
        task_type="math", k_list=[1, 2, 3],
    )  # fmt: skip
    assert results["reward_mean"] == 2.0
    assert results["reward_std"] == pytest.approx(math.sqrt(2))
    assert results["win_rate/reference"] == 0.5
    assert results["accuracy"] == results["avg@2"] == results["pass@1"] == 0.5
    assert results["pass@2"] == 1.0
    assert results["maj@2"] == pytest.approx((0.5 + 1.0) / 2)  # an empty answer has no vote
    assert "pass@3" not in results
    assert (results["empty"], results["truncated"]) == (0.25, 0.25)
    assert "perplexity" not in results
    assert "response_length" not in results
    assert results.figures["reward_mean"].prompts == 2


def test_which_completions_ended_is_not_made_up(folder):
    told = [{"prompt": "one", "completion": "a"}, {"prompt": "two", "completion": "b"}]
    results = evaluate(folder, completions=write(folder / "c.jsonl", told), metrics=["length"])
    assert (results["truncated"], results["empty"]) == (None, 0.0)
    assert "no column finished" in results.figures["truncated"].why
    told[0]["finished"] = False
    assert evaluate(folder, completions=write(folder / "c.jsonl", told), metrics=["length"])["truncated"] == 0.5


def test_the_records_of_a_run_need_the_model_whose_ids_they_hold(folder):
    row = {"update": 1, "episode": 0, "input": "p", "prompt": "p", "prompt_ids": [112], "completion": "ab",
           "completion_ids": [97, 98], "finished": False, "columns": {}}  # fmt: skip
    records = write(folder / "rollouts.jsonl", [row])
    with pytest.raises(ConfigError, match="give model_path, whose ids they are"):
        evaluate(folder, completions=records, metrics=["length"])
    results = evaluate(folder, completions=records, metrics=["length"], model_path=str(folder / "policy"))
    assert results["response_length"] == 2


def test_what_was_asked_for_and_cannot_be_is_null_and_says_why(folder):
    results = evaluate(folder, completions=write(folder / "c.jsonl", FILE), metrics=["reward", "pass_at_k", "length"],
                       k_list=[3])  # fmt: skip
    assert results["reward_mean"] is None
    assert results.figures["reward_mean"].why == "no reward: give reward_model_path or reward_funcs"
    assert results.figures["pass@3"].why == "no prompt has 3 answers"
    assert results.figures["response_length"].why.startswith("no model_path")


def test_another_model_or_file_is_the_other_side(folder):
    prompts = write(folder / "p.jsonl", [{"prompt": row["prompt"]} for row in SFT])
    settings = {
        "model_path": str(folder / "policy"), "dataset_name": prompts, "response_length": 12, "num_generations": 2,
        "reward_funcs": [f"{folder}/rewards.py:vowels"], "metrics": ["win_rate"],
    }  # fmt: skip
    by_model = evaluate(folder, **settings, against=str(folder / "start"))
    assert by_model.figures["win_rate/against"].n == 6
    itself = evaluate(folder, **settings, against=str(folder / "policy"))
    assert itself["win_rate/against"] == itself["lc_win_rate/against"] == 0.5
    (folder / "out" / "completions.jsonl").rename(folder / "mine.jsonl")
    by_file = evaluate(folder, **settings, against=str(folder / "mine.jsonl"))
    assert by_file["win_rate/against"] == 0.5
    some = write(folder / "some.jsonl", [{"prompt": "one", "completion": ""}])
    one = evaluate(folder, **settings, against=some).figures["win_rate/against"]
    assert (one.n, one.left_out) == (1, 5)
    with pytest.raises(DataError, match="it has none of the prompts"):
        evaluate(folder, **settings, against=write(folder / "none.jsonl", [{"prompt": "other", "completion": "x"}]))


def test_failing_rewards_are_left_out_and_counted(folder):
    rows = [{"prompt": f"p{row}", "completion": text} for row, text in enumerate(["bad", "one", "three", "x"])]
    results = evaluate(
        folder, completions=write(folder / "c.jsonl", rows), reward_funcs=[f"{folder}/rewards.py:picky"],
        on_reward_error="drop", metrics=["reward"],
    )  # fmt: skip
    figure = results.figures["reward_mean"]
    assert (figure.value, figure.n, figure.left_out) == (3.0, 3, 1)


def test_rows_that_are_too_long(folder):
    data = write(folder / "long.jsonl", [*SFT, {"prompt": "x" * 600, "completion": "abc"}])
    settings = {"model_path": str(folder / "policy"), "dataset_name": data, "metrics": ["perplexity"]}
    cut = evaluate(folder, **settings)
    short = {"prompt": "x" * 508, "completion": "abc"}
    rows = nll_by_transformers(tiny_causal_lm(), [*SFT, short])
    expected = math.exp(sum(nll for nll, _ in rows) / sum(count for _, count in rows))
    assert cut["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert "1 of 4 answers were cut with their prompts to 512 tokens." in cut.notes
    dropped = evaluate(folder, **settings, on_long_prompt="drop")
    assert (dropped.figures["perplexity"].prompts, dropped.figures["perplexity"].left_out) == (3, 1)
    with pytest.raises(DataError, match="1 of 4 rows have more than 512 tokens"):
        evaluate(folder, **settings, on_long_prompt="error")


def test_what_the_rows_must_hold(folder):
    settings = {"model_path": str(folder / "policy"), "dataset_name": write(folder / "p.jsonl", [{"prompt": "a"}])}
    with pytest.raises(DataError, match="hold no answers"):
        evaluate(folder, **settings, data_task_type="sft")
    with pytest.raises(DataError, match="hold no preference pairs"):
        evaluate(folder, **settings, data_task_type="preference")
    with pytest.raises(ConfigError, match="did you mean perplexity"):
        EvalConfig(metrics=["perplxity"])
    with pytest.raises(ConfigError, match="kl needs reference_model_path"):
        EvalConfig(model_path="x", metrics=["kl"])
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluate(folder, model_path=str(folder / "policy"))


def test_the_command_prints_a_table_or_json(folder, capsys):
    words = ["eval", "--completions", write(folder / "c.jsonl", FILE), "--metrics", "length", "--output_dir",
             str(folder / "out"), "--use_cpu"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "response_characters" in said
    assert "completions of 2 prompts" in said
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["empty"]["value"] == 0.25
    assert record == json.loads((folder / "out" / "eval_results.json").read_text())


LM_EVAL = """
import json, pathlib, sys
words = sys.argv[1:]
pathlib.Path(__file__).with_name("words.json").write_text(json.dumps(words))
if "broken" in words[words.index("--tasks") + 1]:
    sys.exit("no such task: broken")
folder = pathlib.Path(words[words.index("--output_path") + 1]) / "model"
folder.mkdir()
(folder / "results_1.json").write_text(json.dumps({
    "results": {"arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.1, "f1,strict": 0.5}},
    "n-samples": {"arc": {"original": 100, "effective": 20}},
}))
"""


def test_benchmarks_are_handed_to_lm_eval(folder, monkeypatch):
    """To its own program, as the folder that the place means; here one that writes what lm_eval 0.4.13 writes."""
    (folder / "lm_eval").mkdir()
    (folder / "lm_eval" / "__init__.py").write_text("")
    (folder / "lm_eval" / "__main__.py").write_text(LM_EVAL)
    run = folder / "run"
    run.mkdir()
    (folder / "policy").rename(run / "policy")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    results = evaluate(folder, model_path=str(run), lm_eval=["arc", "piqa"], max_samples=20, batch_size=4)
    assert (results["lm_eval/arc/acc"], results["lm_eval/arc/f1/strict"]) == (0.25, 0.5)
    figure = results.figures["lm_eval/arc/acc"]
    assert (figure.n, figure.low, figure.high) == (20, pytest.approx(0.054, abs=1e-4), pytest.approx(0.446, abs=1e-4))
    assert results.figures["lm_eval/arc/f1/strict"].low is None
    words = json.loads((folder / "lm_eval" / "words.json").read_text())
    assert words[:8] == [
        "--model", "hf", "--model_args", f"pretrained={run / 'policy'},dtype=float32", "--tasks", "arc,piqa",
        "--batch_size", "4",
    ]  # fmt: skip
    assert words[words.index("--limit") + 1] == "20"
    with pytest.raises(ModelError, match=r"ended with code 1 and 0 results\. It said:\nno such task: broken"):
        evaluate(folder, model_path=str(run), lm_eval=["broken"])


def test_without_lm_eval_it_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(ConfigError, match=r"cannot be started"):
        evaluate(folder, model_path=str(folder / "policy"), lm_eval=["arc"], lm_eval_python=str(folder / "nothing"))
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(ConfigError, match=r"pip install nearstep\[eval\]"):
            evaluate(folder, model_path=str(folder / "policy"), lm_eval=["arc"])
