"""What users pass to the trainers in Python: taken as it is meant, or refused by name with what may be given."""

import io
import json
from collections import UserDict
from pathlib import Path

import pandas
import pytest
import tokenizers
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from nearstep import (
    ConfigError,
    DataError,
    ModelError,
    NearstepError,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardModelTrainer,
)
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]
PAIRS = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in PROMPTS]


class NeedsArguments(TrainerCallback):
    def __init__(self, needed):
        self.needed = needed


def rows_one_by_one():
    yield from ROWS


# Argument, what is wrong, the error, and words that say what it is and what it may be.
WRONG = [
    ("args", {"learning_rate": 1e-6}, r"args: got \{'learning_rate': 1e-06\} \(dict\).*PPOConfig\(\*\*settings\)"),
    ("args", None, r"args: got an object of NoneType.*PPOConfig"),
    ("args", PPOConfig, r"args: got the class PPOConfig, not an object of it"),
    ("args", RewardConfig(), r"args: got an object of RewardConfig.*PPOConfig, which PPOTrainer takes"),
    ("args", TrainingArguments(output_dir="there"), r"args: got an object of TrainingArguments.*PPOConfig"),
    ("args", "run.yaml", r"args: got 'run.yaml' \(str\).*PPOConfig"),
    ("processing_class", AutoTokenizer, r"processing_class: got the class AutoTokenizer, not an object.*its folder"),
    ("processing_class", tokenizers.Tokenizer(tokenizers.models.BPE()), r"processing_class: got an object of Tok"),
    ("processing_class", [byte_tokenizer()], r"processing_class: got \[.* \(list\).*a tokenizer of transformers"),
    ("processing_class", "/no/such/folder", r"processing_class: the folder '/no/such/folder' does not exist"),
    ("processing_class", "", r"processing_class: got '' \(str\)"),
    ("model", tiny_causal_lm, r"model: got the function tiny_causal_lm\. It may be a model, its folder or"),
    ("model", type(tiny_causal_lm()), r"model: got the class LlamaForCausalLM, not an object of it"),
    ("model", {}, r"model: got \{\} \(dict\)"),
    ("model", [tiny_causal_lm()], r"model: got \[.* \(list\)"),
    ("model", Path("/no/such"), r"the folder '/no/such' does not exist|read from '/no/such'"),
    ("ref_model", True, r"ref_model: got True \(bool\)"),
    ("ref_model", tiny_causal_lm().state_dict(), r"ref_model: got OrderedDict of \d+ entries"),
    ("value_model", torch.zeros(3), r"value_model: got an object of Tensor"),
    ("value_model", lambda ids: ids, r"value_model: got the function <lambda>"),
    ("reward_model", 3, r"reward_model: got 3 \(int\).*a reward function, or a list of them"),
    ("reward_model", [tiny_scalar_model(), None], r"reward_model: got an object of NoneType"),
    ("reward_model", type(tiny_scalar_model()), r"reward_model: got the class LlamaForSequenceClassification"),
    ("reward_funcs", {"low": low_ids}, r"reward_funcs: got .*\(dict\).*a list of functions"),
    ("reward_funcs", [low_ids, 0.5], r"reward_funcs: got 0\.5 \(float\)"),
    ("reward_funcs", [[low_ids]], r"reward_funcs: got .*\(list\)"),
    ("reward_funcs", "mine.py", r"reward_funcs: mine.py names no function; write file.py:name"),
    ("reward_funcs", NeedsArguments, r"reward_funcs is a class and could not be made without arguments"),
    ("reward_processing_class", 5, r"reward_processing_class: got 5 \(int\)"),
    ("reward_processing_class", [byte_tokenizer()] * 2, r"reward_processing_class: got .*\(list\)"),
    ("train_dataset", DatasetDict(train=Dataset.from_list(ROWS)), r"train_dataset.*the splits \['train'\]"),
    ("train_dataset", {"prompt": PROMPTS}, r"train_dataset.*it is one mapping"),
    ("train_dataset", pandas.DataFrame(ROWS), r"train_dataset.*DataFrame cannot be read by row number. Give"),
    ("train_dataset", rows_one_by_one(), r"train_dataset.*generator cannot be read by row number"),
    ("train_dataset", rows_one_by_one, r"train_dataset.*function cannot be read by row number"),
    ("train_dataset", DataLoader(ROWS), r"train_dataset.*DataLoader cannot be read by row number"),
    ("train_dataset", io.StringIO("{}"), r"train_dataset.*StringIO cannot be read by row number"),
    ("train_dataset", 7, r"train_dataset.*int cannot be read by row number"),
    ("eval_dataset", {"prompt": PROMPTS}, r"eval_dataset: 'prompt' is the name of a column"),
    ("eval_dataset", {"easy": 7}, r"eval_dataset.*int cannot be read by row number"),
    ("peft_config", {"r": 8}, r"peft_config: got \{'r': 8\} \(dict\).*peft.LoraConfig\(r=16\)"),
    ("peft_config", LoraConfig, r"peft_config: got the class LoraConfig"),
    ("peft_config", True, r"peft_config: got True \(bool\).*use_peft"),
    ("callbacks", NeedsArguments, r"callbacks: .*could not be made without arguments"),
    ("callbacks", [print], r"callbacks\[0\]: got the function print.*transformers.TrainerCallback"),
    ("callbacks", "wandb", r"callbacks\[0\]: got 'wandb' \(str\)"),
    ("trust_region", "topk_kl", r"trust_region = 'topk_kl' is a name.*PPOConfig\(trust_region='topk_kl'\)"),
    ("advantage", 0.5, r"advantage"),
    ("engine", 5, r"engine 5"),
    ("optimizers", (torch.optim.SGD([torch.zeros(1)], lr=1.0), None), r"no argument optimizers: optim and lr"),
    ("tokenizer", byte_tokenizer(), r"PPOTrainer has no argument tokenizer: give processing_class"),
    ("config", PPOConfig(), r"PPOTrainer has no argument config: give args"),
    ("dataset", ROWS, r"no argument dataset: give train_dataset"),
    ("compute_metrics", print, r"no argument compute_metrics: a reward function logs numbers"),
    ("trian_dataset", ROWS, r"no argument trian_dataset: did you mean train_dataset\?"),
    ("beam", 3, r"no argument beam: it takes args, processing_class, model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(WRONG)])
def test_a_wrong_object_is_named_with_what_may_be_given(name, value, words, tmp_path):
    parts = {
        "args": settings(tmp_path / "out"), "processing_class": byte_tokenizer(), "model": tiny_causal_lm(layers=1),
        "reward_funcs": low_ids, "train_dataset": ROWS, name: value,
    }  # fmt: skip
    with pytest.raises(NearstepError, match=f"(?s){words}"):
        PPOTrainer(**parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value", "words"), [
    ("args", PPOConfig(), r"args: got an object of PPOConfig.*RewardConfig, which RewardModelTrainer takes"),
    ("args", {}, r"args: got \{\} \(dict\).*RewardConfig\(\*\*settings\)"),
    ("processing_class", 5, r"processing_class: got 5 \(int\)"), ("model", [1], r"model: got \[1\] \(list\)"),
    ("train_dataset", pandas.DataFrame(PAIRS), r"DataFrame cannot be read by row number"),
    ("train_dataset", iter(PAIRS), r"train_dataset.*iterator cannot be read by row number"),
    ("eval_dataset", {"a": PAIRS}, r"eval_dataset.*one mapping"),
    ("peft_config", {}, r"peft_config: got \{\} \(dict\)"),
    ("callbacks", 3, r"callbacks\[0\]: got 3 \(int\)"), ("reward_funcs", 3, r"reward_funcs: got 3 \(int\)"),
    ("reward_functions", {"f": low_ids}, r"reward_funcs: got"), ("data_collator", print, r"no argument data_collator"),
])  # fmt: skip
def test_the_trainer_of_reward_models_refuses_alike(name, value, words, tmp_path):
    parts = {
        "args": RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True), "processing_class": byte_tokenizer(),
        "model": tiny_causal_lm(layers=1), "train_dataset": PAIRS, name: value,
    }  # fmt: skip
    with pytest.raises((ConfigError, DataError, ModelError), match=f"(?s){words}"):
        RewardModelTrainer(**parts)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_causal_lm(layers=1).save_pretrained(home / "policy")
    tiny_scalar_model(layers=1).save_pretrained(home / "scorer")
    for folder in ("policy", "scorer"):
        byte_tokenizer().save_pretrained(home / folder)
    (home / "prompts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (home / "mine.py").write_text("def same(completions, **others):\n    return [1.0] * len(completions)\n")
    return home


def test_paths_texts_and_one_object_for_a_list_are_taken(places, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            seen.append(state.global_step)

    trainer = PPOTrainer(
        args=settings(tmp_path, total_episodes=8, num_sample_generations=0), processing_class="~/policy",
        model=Path("~/policy"), ref_model=places / "policy", value_model="$HOME/scorer",
        reward_model=[places / "scorer", tiny_scalar_model(layers=1, seed=5), low_ids],
        reward_funcs=Path("~/mine.py:same"), reward_processing_class=Path("~/scorer"),
        train_dataset=[Path("~/prompts.jsonl")], eval_dataset="~/prompts.jsonl", callbacks=Watch,
        optimizers=(None, None), data_collator=None,
    )  # fmt: skip
    assert trainer.train().updates == 1
    assert seen == [1]
    record = json.loads((tmp_path / "rollouts.jsonl").read_text().splitlines()[0])
    assert list(record["scores"]) == ["scorer", "reward_model", "low_ids", "same"]
    assert record["total_score"] == pytest.approx(sum(record["scores"].values()), rel=1e-5)


def test_a_reward_class_is_made_and_a_function_may_stand_for_the_reward_model(tmp_path):
    class Same:
        def __call__(self, completions, **others):
            return [0.25] * len(completions)

    parts = {"processing_class": byte_tokenizer(), "model": tiny_causal_lm(layers=1), "train_dataset": ROWS}
    for given in ({"reward_model": low_ids}, {"reward_funcs": Same}, {"reward_funcs": {low_ids}}):
        assert len(PPOTrainer(args=settings(tmp_path), **parts, **given).recipe.rewards.names) == 1


def test_a_mapping_that_only_looks_like_settings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="args: got an object of UserDict"):
        PPOTrainer(args=UserDict(seed=1), model=tiny_causal_lm(layers=1))
