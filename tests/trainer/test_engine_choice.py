"""The engine of a run: by name from the command line, as an object from Python; one for training and evaluation."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from nearstep import Capabilities, ConfigError, EngineSettings, PPOTrainer
from nearstep.cli.main import main
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.training.state import State
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]
MINE = """
import json
from dataclasses import replace
from pathlib import Path

from nearstep import Capabilities
from nearstep.rollout.transformers_engine import TransformersEngine

CALLS = Path(__file__).with_name("calls.jsonl")


class Silent:
    \"\"\"Ours, and no more than sampling; every call is written down.\"\"\"

    def __init__(self, settings):
        self.inner = TransformersEngine(settings)
        self.note("built", settings.max_rows)

    def note(self, *call):
        with CALLS.open("a") as file:
            print(json.dumps(call), file=file)

    def capabilities(self):
        return Capabilities()

    def load(self, policy, version):
        self.inner.load(policy, version)
        self.note("load", version)

    def generate(self, prompts, settings, row_ended=None):
        assert row_ended is None
        self.note("generate", len(prompts), settings.greedy, settings.top_tokens)
        return self.inner.generate(prompts, settings)

    def close(self):
        self.note("close")
        self.inner.close()
"""


@dataclass
class Watched(TransformersEngine):
    """Ours, with what it was asked for."""

    calls: list[tuple[int, bool]] = field(default_factory=list)
    closed: int = 0

    def generate(self, prompts, settings, row_ended=None):
        self.calls.append((len(prompts), settings.greedy))
        return super().generate(prompts, settings, row_ended)

    def close(self):
        self.closed += 1
        super().close()


class OnlySamples(TransformersEngine):
    def capabilities(self):
        return Capabilities()


def trainer_of(folder, engine=None, changes=None, **given):
    return PPOTrainer(
        args=settings(folder, **(changes or {})), processing_class=byte_tokenizer(), model=tiny_causal_lm(),
        reward_funcs=low_ids, train_dataset=ROWS, engine=engine, **given,
    )  # fmt: skip


def test_an_engine_named_on_the_command_line_plays_the_whole_run(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "judge.py").write_text("def low(completion_ids, **_): return [sum(i) / -999 for i in completion_ids]\n")
    (tmp_path / "mine.py").write_text(MINE)
    assert main([
        "ppo", "--model_name_or_path", str(tmp_path / "policy"), "--dataset_name", str(tmp_path / "prompts.jsonl"),
        "--reward_funcs", f"{tmp_path}/judge.py:low", "--output_dir", str(tmp_path / "out"), "--total_episodes", "16",
        "--response_length", "5", "--use_cpu", "--num_eval_rows", "3", "--num_sample_generations", "1",
        "--engine", f"{tmp_path}/mine.py:Silent",
    ]) == 0  # fmt: skip
    calls = [tuple(json.loads(line)) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert calls == [
        ("built", 64), ("load", 1), ("generate", 3, True, 0), ("generate", 3, True, 0),  # what the start answers
        ("load", 1), ("generate", 8, False, 0), ("load", 2), ("generate", 8, False, 0),
        ("load", 3), ("generate", 3, True, 0), ("load", 3), ("generate", 3, True, 0), ("close",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given", [slow(Watched), slow(lambda made_from: Watched(made_from)), Watched(EngineSettings(max_rows=2))]
)
def test_an_engine_in_python_is_a_class_a_function_or_an_object(given, tmp_path):
    trainer = trainer_of(tmp_path, given, {"total_episodes": 8}, eval_dataset=ROWS[:3])
    trainer.train()
    engine = trainer.recipe.engine
    assert (engine.calls, engine.closed) == ([(3, True), (8, False), (3, True)], 1)
    assert engine.settings.max_rows == (2 if engine is given else 64)


def test_an_engine_that_python_names_is_the_setting(tmp_path):
    """And is held to all that the setting is."""
    assert trainer_of(tmp_path, "continuous_batching").recipe.config.engine == "continuous_batching"
    with pytest.raises(ConfigError, match="needs the address of a server"):
        trainer_of(tmp_path, "vllm_server")
    with pytest.raises(ConfigError, match="engine = 'vlm' is unknown; did you mean vllm"):
        trainer_of(tmp_path, "vlm")
    assert not (tmp_path / "out").exists()


def test_evaluation_and_samples_are_played_greedily(tmp_path):
    """transformers' own greedy search writes the same, at whatever temperature training samples."""
    trainer = trainer_of(tmp_path, None, {"temperature": 5.0}, eval_dataset=ROWS[:4])
    evaluator, engine = trainer.recipe.evaluator, trainer.recipe.engine
    written = []
    for prompt in evaluator.sample_prompts.ids:
        ids = torch.tensor([prompt])
        row = tiny_causal_lm().generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=256, pad_token_id=257)
        written.append(row[0, len(prompt) :].tolist())
    expected = low_ids(written)
    assert [sample.response for sample in evaluator.samples(engine, State())] == [
        evaluator.judged(ids, ids[-1] == 256) for ids in written
    ]
    found = evaluator.evaluate(engine, State()).numbers["objective/scores"]
    assert found == pytest.approx(sum(expected) / 4)


def test_a_region_that_needs_top_tokens_is_refused_with_an_engine_that_records_none(tmp_path):
    with pytest.raises(ConfigError, match="compares the 20 most probable tokens, and engine OnlySamples records none"):
        trainer_of(tmp_path / "out", OnlySamples, {"trust_region": "topk_tv"})
    assert not (tmp_path / "out").exists()
    assert trainer_of(tmp_path / "out", OnlySamples, {"trust_region": "binary_tv"}).recipe.trust_region.top_k == 0


def test_what_is_no_engine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no capabilities, load, generate, close"):
        trainer_of(tmp_path, 3)
    with pytest.raises(ConfigError, match="engine = 'transformer' is unknown; did you mean transformers"):
        settings(tmp_path, engine="transformer")
    with pytest.warns(UserWarning, match="decode_graphs has no effect with engine = mine.py:Mine"):
        settings(tmp_path, engine="mine.py:Mine", decode_graphs=True, use_cpu=False)
