"""Every setting of reward-model training changes something: two runs that differ in it alone leave different traces."""

import dataclasses
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from nearstep import RewardConfig, RewardModelTrainer
from nearstep.common.errors import ModelError, NearstepError
from nearstep.scale.torch_backend import torch_backend
from tests.lanes import sampled, slow
from tests.models.odd_folders import code_folder, pickled_folder
from tests.reward_modeling.world import base_folder, chats, pairs, write
from tests.tiny import byte_tokenizer, tiny_scalar_model

SLOW = pairs(24)[5]["chosen"]
REWARD = f"""
import os
import time

def letters(completions, **columns):
    return [float(text.count("a") + text.count("h")) for text in completions]

def vowels(completions, **columns):
    return [float(text.count("a") + text.count("e")) for text in completions]

def picky(completions, **columns):
    if any("a" in text for text in completions):
        raise ValueError("no a")
    return [float(text.count("h")) for text in completions]

def elsewhere(completions, **columns):
    return [float(text.count("h")) + (os.getpid() != {os.getpid()}) for text in completions]

def slow_once(completions, **columns):
    time.sleep(1.0 if "{SLOW}" in completions else 0.0)
    return [float(text.count("h")) for text in completions]
"""
LORA = {"use_peft": True}
FROM_REWARDS = {"reward_funcs": "{place}/rewards.py:letters"}
RANKED = {**FROM_REWARDS, "objective": "pairwise"}
WRITTEN = {**FROM_REWARDS, "dataset_name": "{place}/prompts.jsonl", "response_length": 6}
WATCHED = {"eval_dataset_name": "{place}/fewer.jsonl"}

# setting: (what else is set, the value that must make a difference)
EFFECTS: dict[str, tuple[dict[str, object], object]] = {
    "output_dir": ({}, "{folder}/elsewhere"),
    "seed": ({}, 7),
    "model_name_or_path": ({}, "{place}/other"),
    "dtype": ({}, "bfloat16"),
    "bf16": ({}, True),
    "gradient_checkpointing": ({}, True),
    "use_peft": ({}, True),
    "lora_r": (LORA, 2),
    "lora_alpha": (LORA, 3),
    "lora_target_modules": (LORA, ["q_proj"]),
    "lora_modules_to_save": (LORA, ["embed_tokens"]),
    "use_dora": (LORA, True),
    "use_rslora": (LORA, True),
    "dataset_name": ({}, "{place}/fewer.jsonl"),
    "dataset_train_split": ({"dataset_name": "{place}/splits"}, "test"),
    "eval_dataset_name": ({}, "{place}/fewer.jsonl"),
    "dataset_test_split": ({"dataset_name": "{place}/splits"}, "test"),
    "dataset_format": ({}, "prompt"),
    "columns": ({"dataset_name": "{place}/both.jsonl"}, {"chosen": "worse", "rejected": "better"}),
    "chat_template_kwargs": (
        {"model_name_or_path": "{place}/thinking", "dataset_name": "{place}/chats.jsonl"},
        {"thinking": False},
    ),
    "on_bad_row": ({"dataset_name": "{place}/bad.jsonl"}, "drop"),
    "max_length": ({"on_long_text": "drop"}, 12),
    "on_long_text": ({"max_length": 12}, "drop"),
    "held_out_share": ({}, 0.5),
    "reward_model_path": ({}, "{place}/scorer"),
    "reward_funcs": (FROM_REWARDS, "{place}/rewards.py:vowels"),
    "reward_weights": ({"reward_funcs": ["{place}/rewards.py:letters", "{place}/rewards.py:vowels"]}, [1.0, 5.0]),
    "reward_workers": ({"reward_funcs": "{place}/rewards.py:elsewhere"}, 1),
    "reward_timeout_seconds": ({"reward_funcs": "{place}/rewards.py:slow_once", "reward_workers": 1}, 0.3),
    "on_reward_error": ({"reward_funcs": "{place}/rewards.py:picky", "reward_workers": 1}, "drop"),
    "objective": (FROM_REWARDS, "pairwise"),
    "center_rewards_coefficient": ({}, 0.5),
    "label_smoothing": ({}, 0.2),
    "margin_coefficient": ({}, 0.0),
    "min_score_gap": (RANKED, 1.5),
    "normalize": ({}, "mean"),
    "num_texts": ({**FROM_REWARDS, "dataset_name": [], "response_length": 6, "num_texts": 24}, 30),
    "num_generations": (WRITTEN, 3),
    "response_length": (WRITTEN, 4),
    "temperature": (WRITTEN, 0.5),
    "num_train_epochs": ({"max_steps": None}, 2.0),
    "max_steps": ({}, 2),
    "per_device_train_batch_size": ({}, 3),
    "gradient_accumulation_steps": ({}, 2),
    "per_device_eval_batch_size": ({}, 1),
    "learning_rate": ({}, 1e-3),
    "lr_scheduler_type": ({}, "linear"),
    "warmup_steps": ({"lr_scheduler_type": "linear"}, 2),
    "optim": ({}, "sgd"),
    "master_weights": ({"dtype": "bfloat16"}, False),
    "weight_decay": ({}, 0.5),
    "adam_beta1": ({}, 0.5),
    "adam_beta2": ({}, 0.5),
    "adam_epsilon": ({}, 1e-2),
    "max_grad_norm": ({"optim": "sgd"}, 0.01),
    "logging_steps": ({}, 2),
    "report_to": ({}, "tensorboard"),
    "eval_steps": (WATCHED, 1),
    "save_steps": ({}, 1),
    "save_total_limit": ({"save_steps": 1}, 1),
    "load_best_model_at_end": ({**WATCHED, "eval_steps": 1, "save_steps": 1, "max_steps": 6}, True),
    "resume_from_checkpoint": ({}, "{place}/stopped/checkpoint-2"),
}
OF_SERVERS = {
    "reward_url", "reward_url_token_env", "reward_url_timeout_seconds", "reward_url_retries", "reward_url_batch_size",
}  # fmt: skip
# The first have tests of their own below, the last are shown in tests/trainer and tests/rewards: the code is the same.
APART = {"run_name", "use_cpu", "trust_remote_code", "allow_pickled_weights", "push_to_hub", "hub_model_id"}
SAME_CODE = {"dataset_config", "wait_timeout_seconds", "reward_retries", *OF_SERVERS}
BASE: dict[str, object] = {
    "model_name_or_path": "{place}/base", "dataset_name": "{place}/pairs.jsonl", "output_dir": "{folder}",
    "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
    "held_out_share": 0.2, "logging_steps": 1, "use_cpu": True,
}  # fmt: skip


def test_every_setting_has_its_effect_shown():
    assert {field.name for field in dataclasses.fields(RewardConfig)} == set(EFFECTS) | APART | SAME_CODE
    assert all(f"test_{name}" in globals() for name in APART)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    base_folder(folder / "base")
    base_folder(folder / "other", seed=5)
    thinking = base_folder(folder / "thinking") / "chat_template.jinja"
    thinking.write_text(thinking.read_text() + "{% if not thinking | default(true) %}!{% endif %}")
    tiny_scalar_model().save_pretrained(folder / "scorer")
    byte_tokenizer().save_pretrained(folder / "scorer")
    (folder / "rewards.py").write_text(REWARD)
    (folder / "splits").mkdir()
    rows = [{**row, "margin": number % 3} for number, row in enumerate(pairs(24))]
    both = [{**row, "better": row["chosen"], "worse": row["rejected"]} for row in rows]
    for name, content in {
        "pairs": rows, "fewer": rows[:7], "splits/train": rows, "splits/test": rows[:9], "both": both,
        "bad": [*rows, {"prompt": "a", "chosen": "b", "rejected": "b"}],
        "chats": chats(rows),
        "prompts": [{"prompt": row["prompt"]} for row in rows],
    }.items():  # fmt: skip
        write(folder / f"{name}.jsonl", content)
    settings = {name: _placed(value, folder, folder / "stopped") for name, value in BASE.items()}
    RewardModelTrainer(RewardConfig(**settings | {"save_steps": 2, "max_steps": 2, "seed": 3})).train()
    return folder


@dataclasses.dataclass(frozen=True)
class Traces:
    """What a run leaves: weights, metrics, report, names of files, what it said of its data, calls of every layer."""

    weights: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]
    report: str
    files: frozenset[str]
    said: str
    calls: Counter[tuple[str, int]]


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """Run settings and return their traces; equal settings run once."""
    known: dict[str, Traces] = {}

    def traces(settings, *, again=False):
        key = json.dumps(settings, sort_keys=True)
        if again or key not in known:
            known[key] = _traces(settings, place, tmp_path_factory.mktemp("run"))
        return known[key]

    return traces


def _placed(value, place, folder):
    if isinstance(value, list):
        return [_placed(entry, place, folder) for entry in value]
    return value.format(place=place, folder=folder) if isinstance(value, str) else value


def _traces(settings, place, folder) -> Traces:
    calls: Counter[tuple[str, int]] = Counter()
    hook = register_module_forward_hook(
        lambda module, inputs, _: (
            calls.update([(type(module).__name__, inputs[0].numel())])
            if inputs and isinstance(inputs[0], torch.Tensor)
            else None
        )
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            placed = {name: _placed(value, place, folder) for name, value in settings.items()}
            trainer = RewardModelTrainer(RewardConfig(**placed))
            trainer.train()
    except NearstepError as error:
        return Traces((), (), "", frozenset(), type(error).__name__ + str(error).partition("\n")[0], Counter())
    finally:
        hook.remove()
    out = Path(trainer.run.config.output_dir)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return Traces(
        tuple(float(weight.double().sum()) for weight in trainer.model.state_dict().values()),
        tuple({name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
              for entry in metrics),
        (out / "report.json").read_text(),
        frozenset(str(path.relative_to(folder)).split("tfevents")[0] for path in folder.rglob("*")),
        "\n".join(trainer.run.examples.sentences),
        calls,
    )  # fmt: skip


def test_the_same_settings_leave_the_same_traces(run):
    """Or any difference below would show nothing."""
    assert run(BASE) == run(BASE, again=True)


@pytest.mark.parametrize("name", sampled(EFFECTS, 24))
def test_setting_changes_something(name, run):
    others, value = EFFECTS[name]
    before = {**BASE, **others}
    assert before.get(name) != value
    assert run(before) != run({**before, name: value})


@pytest.mark.slow
def test_run_name(run, place, tmp_path):
    placed = {name: _placed(value, place, tmp_path) for name, value in BASE.items()}
    folder = RewardModelTrainer(RewardConfig(**placed | {"run_name": "a name of its own"})).train()
    assert "# a name of its own" in (folder / "README.md").read_text()


def test_use_cpu(place, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "nearstep.reward_modeling.run.torch_backend",
        lambda *, use_cpu: asked.append(use_cpu) or torch_backend(use_cpu=True),
    )
    for use_cpu in (True, False):
        placed = {name: _placed(value, place, tmp_path) for name, value in BASE.items()}
        RewardModelTrainer(RewardConfig(**placed | {"use_cpu": use_cpu}))
    assert asked == [True, False]


def test_trust_remote_code(place, tmp_path):
    bringing = code_folder(place / "base", tmp_path / "bringing")
    placed = {name: _placed(value, place, tmp_path) for name, value in BASE.items()}
    placed["model_name_or_path"] = str(bringing)
    with pytest.raises(ModelError, match="points to Python code of its own"):
        RewardModelTrainer(RewardConfig(**placed))
    assert not (bringing / "ran").exists()
    with pytest.raises(ModelError, match="Unrecognized configuration"):  # it brings no trunk for its own configuration
        RewardModelTrainer(RewardConfig(**placed | {"trust_remote_code": str(bringing)}))
    assert (bringing / "ran").exists()


def test_allow_pickled_weights(place, tmp_path):
    placed = {name: _placed(value, place, tmp_path) for name, value in BASE.items()}
    placed["model_name_or_path"] = str(pickled_folder(place / "base", tmp_path / "pickled"))
    with pytest.raises(ModelError, match=r"pytorch_model.bin' are a pickle"):
        RewardModelTrainer(RewardConfig(**placed))
    RewardModelTrainer(RewardConfig(**placed | {"allow_pickled_weights": True}))


@pytest.mark.parametrize("repository", [slow(None), "me/scorer"])
def test_push_to_hub(repository, place, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr("nearstep.reward_modeling.trainer.push_to_hub", lambda *given: pushed.append(given))
    monkeypatch.setattr("nearstep.reward_modeling.run.check_hub", lambda repository: None)
    placed = {name: _placed(value, place, tmp_path / "out") for name, value in BASE.items()}
    RewardModelTrainer(RewardConfig(**placed | {"push_to_hub": True, "hub_model_id": repository})).train()
    assert pushed == [(tmp_path / "out" / "reward", repository or "out")]


test_hub_model_id = test_push_to_hub
