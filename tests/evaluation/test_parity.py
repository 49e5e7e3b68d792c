"""nearstep parity: figures of an engine that is off by a known amount, verdicts, the table and its exit code."""

import json
import math
from dataclasses import replace

import pytest

from nearstep.cli.main import main
from nearstep.cli.parity import parity_text, worst_of
from nearstep.evaluation.parity import ParityFigures, ParityLine, engine_parity, made_prompts
from nearstep.models.distribution import Sampling
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, GenerationSettings
from nearstep.rollout.transformers_engine import TransformersEngine
from tests.tiny import byte_tokenizer, tiny_causal_lm

SETTINGS = GenerationSettings(Sampling(0.8), 6, (), seed=0)
EXACT = ParityFigures(60, 1e-9, 2e-9, 0.0, 1e-6, 0.0)


class Off(TransformersEngine):
    """Records log-probs that are lower than they were, and says another token in one of six places when greedy."""

    by = 0.1

    def generate(self, prompts, settings, row_ended=None):
        found = super().generate(prompts, settings)
        if not settings.greedy:
            return replace(found, logprobs=found.logprobs - self.by)
        tokens = found.tokens.clone()
        tokens[found.last_positions] = (tokens[found.last_positions] + 1) % 258
        return replace(found, tokens=tokens)


def figures_of(engine, **changes):
    policy = make_policy(tiny_causal_lm("llama"))
    engine.load(policy, 0)
    return engine_parity(engine, policy, made_prompts(5, 258, None, seed=0), SETTINGS, **changes)


def test_an_engine_that_is_off_by_a_known_amount():
    found = figures_of(Off(EngineSettings()))
    assert found.tokens == 30
    assert found.kl == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-4)  # 0.00517
    assert found.kl_worst_row == pytest.approx(found.kl, rel=1e-4)
    assert found.share_far == 0
    assert found.greedy_differs == pytest.approx(1 / 6)
    assert found.verdict(narrow=False) == "watch"
    far = Off(EngineSettings())
    far.by = 0.7  # e^0.7 is above 2
    assert figures_of(far).share_far == 1
    assert figures_of(far).verdict(narrow=True) == "wrong"


def test_the_largest_gap_is_one_of_probabilities():
    engine = Off(EngineSettings())
    found = figures_of(engine)
    truth = TransformersEngine(EngineSettings())
    truth.load(engine.policy, 0)
    logprobs = truth.generate(made_prompts(5, 258, None, seed=0), SETTINGS).logprobs
    largest = float(logprobs.exp().max()) * (1 - math.exp(-0.1))
    assert found.probability_gap == pytest.approx(largest, rel=1e-3)


def test_the_built_in_engine_is_equal_however_its_rows_are_grouped():
    found = [
        figures_of(TransformersEngine(EngineSettings(rows)), max_tokens=most) for rows, most in ((2, 70), (64, 9999))
    ]
    assert [each.verdict(narrow=False) for each in found] == ["equal", "equal"]
    assert [each.greedy_differs for each in found] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "narrow", "verdict"),
    [
        ({}, False, "equal"),
        ({"kl": 1e-4}, False, "watch"),  # float32 does not round so much
        ({"kl": 1e-4}, True, "fits"),
        ({"probability_gap": 0.01}, False, "watch"),
        ({"kl": 6e-3}, True, "watch"),
        ({"kl": 0.03}, True, "wrong"),
        ({"kl": math.nan}, False, "wrong"),
    ],
)
def test_verdicts(changes, narrow, verdict):
    assert replace(EXACT, **changes).verdict(narrow=narrow) == verdict


def test_the_worst_line_decides():
    lines = [ParityLine("a", "float32", 8, EXACT, "equal", "so"), ParityLine("b", "float32", 8, None, "refused", "why")]
    assert worst_of(lines) == "refused"
    assert parity_text(lines).splitlines()[-2:] == ["equal: so", "refused: b: why"]


def test_made_prompts_depend_on_the_seed_alone_and_fit():
    prompts = made_prompts(4, 50, 10, seed=3)
    assert [len(ids) for ids in prompts.ids] == [1, 4, 7, 10]
    assert made_prompts(4, 50, 10, seed=3).ids == prompts.ids != made_prompts(4, 50, 10, seed=4).ids
    assert max(map(max, prompts.ids)) < 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("parity") / "policy"
    tiny_causal_lm("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    engine = "from tests.evaluation.test_parity import Off\n\nclass Far(Off):\n    by = 0.7\n"
    (place.parent / "far.py").write_text(engine)
    (place.parent / "prompts.jsonl").write_text('{"prompt": "two"}\n{"prompt": "three"}\n')
    return place


def test_the_command(folder, capsys):
    few = ["--use_cpu", "--response_length", "4", "--batch_sizes", "2", "8", "--json"]
    prompts = ["--dataset_name", str(folder.parent / "prompts.jsonl")]
    assert main(["parity", str(folder), *few, *prompts, "--dtypes", "float32", "bf16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] in ("equal", "fits")
    assert [(line["dtype"], line["batch_size"], line["figures"]["tokens"]) for line in found["lines"]] == [
        ("float32", 2, 8), ("float32", 8, 8), ("bf16", 2, 8), ("bf16", 8, 8),
    ]  # fmt: skip
    assert (
        main(["parity", str(folder), "--use_cpu", "--engines", f"{folder.parent}/far.py:Far", "--max_samples", "3"])
        == 3
    )
    shown = capsys.readouterr().out
    assert "wrong: do not train with it" in shown
    assert "100.00%" in shown
    assert main(["parity", str(folder.parent / "nowhere")]) == 2


def test_settings_that_cannot_be(folder, capsys):
    assert main(["parity", str(folder), "--engines", "vlm", "--dtypes", "int8"]) == 2
    told = capsys.readouterr().err
    assert "did you mean vllm?" in told
    assert "'int8' is none of float32" in told
    assert main(["parity", str(folder), "--engines", "vllm_server"]) == 2
    assert "give engine_url" in capsys.readouterr().err
