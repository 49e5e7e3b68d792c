"""`nearstep check`: what is checked, how it is told, and that the example passes and trains."""

import json
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.testing.kinds import KINDS
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_region.py")

MINE = """
from nearstep.algorithm.trust_regions import Clip
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.schedules import Decoupled, Phase

class Region:
    top_k = 0
    def weight(self, now, old, advantages, rows):
        return (now.sampled <= old.sampled).float()

DUAL = Clip(dual=3.0)

def reward(completions, answer):
    return [float(a in text) for text, a in zip(completions, answer)]

class Schedule:
    def phases(self, update):
        return [Phase(update, 1, policy=True, critic=True)]

SHORT = Decoupled(1, 1, 5, last_update=7)

def engine(settings):
    return TransformersEngine(settings)

class NoWeight:
    top_k = 0

class NoClose:
    def __init__(self, settings): pass
    def capabilities(self): pass
    def load(self, policy, version): pass
    def generate(self, prompts, settings, row_ended=None): pass

class Nothing:
    pass

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "2+2?", "completion": "4", "answer": "4"}) + "\n")
    return tmp_path / "mine.py"


@pytest.mark.parametrize("name", ["MyRegion", slow("STRICTER")])
def test_the_example_region_passes(name, capsys):
    assert main(["check", f"{EXAMPLE}:{name}"]) == 0
    first, *laws = capsys.readouterr().out.splitlines()
    assert first == "trust region MyRegion: 15 laws hold"
    assert len(laws) == 15
    assert "  on_policy         where the policy has not moved, every weight is 1" in laws


def test_the_example_region_trains(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": "abc" * n}) for n in range(1, 9)))
    (tmp_path / "scorer.py").write_text(
        "def low(completion_ids, **_): return [sum(i) / -999 for i in completion_ids]\n"
    )
    run = [
        "--model_name_or_path", str(tmp_path / "policy"), "--dataset_name", str(tmp_path / "prompts.jsonl"),
        "--reward_funcs", f"{tmp_path}/scorer.py:low", "--output_dir", str(tmp_path / "out"), "--total_episodes", "16",
        "--response_length", "5", "--learning_rate", "0.01", "--use_cpu",
    ]  # fmt: skip
    assert main(["ppo", "--trust_region", f"{EXAMPLE}:MyRegion", *run]) == 0
    updates = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(updates) == 2
    assert updates[0]["policy/clipfrac_avg"] > 0


def test_a_broken_region_fails_with_the_law(mine, capsys):
    assert main(["check", f"{mine}:Region"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[1].startswith("nearstep: trust region Region breaks the law 'returning'")
    assert "counterexample: at rollout p = " in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["NoWeight"], 2, "NoWeight has the members of no axis; nearest is trust_region, of which it has top_k and "
         "lacks weight. Say which it is for by --kind and one of trust_region, "),
        (["NoWeight", "--kind", "trust_region"], 1, "a NoWeight without weight"),
        (["Nothing"], 2, "Nothing has the members of no axis. Say which"),
        (["NoClose"], 1, "it is no engine, for it has no close"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_missing_member_is_named(words, code, said, mine, capsys):
    assert main(["check", f"{mine}:{words[0]}", *words[1:]]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "0x" not in shown


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["DUAL", "--skip", "returning"], "trust region Clip: 14 laws hold, 1 skipped (returning)"),
        (["reward", "--rows", "rows.jsonl"], "reward reward: 8 laws hold"),
        (["Schedule"], "critic schedule Schedule: 8 laws hold"),
        (["SHORT", "--updates", "7"], "critic schedule Decoupled: 8 laws hold"),
        slow((["torch_backend", "--kind", "backend"], "backend TorchBackend: 10 laws hold")),
        slow((["TransformersEngine"], "engine TransformersEngine: 21 laws hold")),
        slow((["engine", "--kind", "engine"], "engine engine: 21 laws hold")),
    ],
)
def test_every_kind_is_checked(words, first, mine, capsys, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert main(["check", f"mine.py:{words[0]}", *words[1:]]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to check"),
        (["mine.py"], "write it as path/to/file.py:Name"),
        (["--object", "mine.py:Region", "--rows", "none.jsonl"], "rows = none.jsonl: no such file"),
        (["nothing.py:Region"], "there is no file nothing.py"),
        (["mine.py:Regoin"], "Did you mean Region"),
        (["mine.py:NUMBER"], "3 has the members of no axis"),
        (["mine.py:DUAL", "--skip", "on_policy"], "law 'on_policy' is universal"),
        (["mine.py:Region", "--kind", "region"], "must be one of auto, trust_region"),
        (["mine.py:NUMBER", "--kind", "engine"], "engine 3: name its class"),
        (["mine.py:reward", "--rows", "mine.py"], "line 1 is no JSON"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_refused(words, said, mine, capsys, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"]])
def test_help_names_every_kind(words, capsys):
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split()).lower()
    summary = shown[shown.index("hold an object") :].split(". ")[0]
    assert [kind for kind in KINDS if kind.replace("_", " ") not in summary] == []


def test_help_shows_where_the_object_stands(capsys):
    assert main(["check", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: nearstep check OBJECT [--config FILE] [--name value …]")
