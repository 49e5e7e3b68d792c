"""unsloth as the loader of the policy, where a stand-in takes its place: what is asked of it, put back and refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from nearstep import ConfigError, ModelError, PPOConfig
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.common import import_order
from nearstep.common.trust import DEFAULT_TRUST
from nearstep.models.unsloth_loading import adapt_by_unsloth, load_by_unsloth
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings
from tests.unsloth.stand_in import stand_in

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
BY_UNSLOTH = {"model_loader": "unsloth", "use_peft": True, "lora_r": 4}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def unsloth(monkeypatch):
    """It, as if it had been imported first."""
    module = stand_in()
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(import_order, "imported_before", lambda package: [])
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A policy without a padding token in its configuration, and adapters over it that change something."""
    place = tmp_path_factory.mktemp("unsloth")
    model = tiny_causal_lm(layers=1)
    model.config.pad_token_id = None
    model.save_pretrained(place / "base")
    byte_tokenizer().save_pretrained(place / "base")
    model.name_or_path = str(place / "base")
    torch.manual_seed(3)
    adapters = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, adapters).save_pretrained(place / "adapters")
    byte_tokenizer().save_pretrained(place / "adapters")
    return place


def made(out, base, *, folder="base", parts=None, **changes):
    inputs = RunInputs(train_dataset=[{"prompt": text} for text in PROMPTS], reward_funcs=(low_ids,), **(parts or {}))
    named = {"model_name_or_path": str(base / folder), "use_cpu": True}
    return assemble(settings(out, **(named | BY_UNSLOTH | changes)), inputs)


def test_it_loads_the_policy_and_puts_lora_on_and_the_reference_is_the_adapter_off(unsloth, base, tmp_path, capsys):
    recipe = made(tmp_path, base, learning_rate=1e-2, total_episodes=8)
    adapted = recipe.models.policy.model
    assert adapted.peft_config["default"].r == 4
    assert len(adapted.peft_config["default"].target_modules) == 7
    assert recipe.models.reference.adapters_off
    assert "The policy was loaded by unsloth 2026.10.9 on cpu" in recipe.introduction
    assert unsloth.FastLanguageModel.asked == {"checkpointing": False}
    assert (adapted.config.use_cache, adapted.config.pad_token_id) == (True, None)  # it had changed both
    told = capsys.readouterr()
    assert "a banner" in told.err
    assert "a banner" not in told.out
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    train(recipe, State())
    moved = {name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_it_is_asked_for_the_named_weights_alone_and_rows_as_long_as_the_model_reads(unsloth, base, tmp_path):
    made(tmp_path, base, folder="adapters", use_peft=False)
    asked = {"max_seq_length": 512, "load_in_4bit": False, "exact": True, "checkpointing": False}
    assert unsloth.FastLanguageModel.asked == asked


@pytest.mark.parametrize("trunk", [slow("separate"), slow("shared"), "adapter"])
def test_adapters_of_a_folder_train_on_as_they_do_without_it(unsloth, base, tmp_path, trunk):
    """The same adapters on the same weights: the run is the same to the last bit."""
    runs = []
    for loader in ("transformers", "unsloth"):
        changes = {"model_loader": loader, "folder": "adapters", "use_peft": False, "critic_trunk": trunk}
        recipe = made(tmp_path / loader, base, learning_rate=1e-2, total_episodes=8, **changes)
        train(recipe, State())
        runs.append(dict(recipe.models.policy.model.named_parameters()))
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def loaded(base, folder="base"):
    return load_by_unsloth(
        str(base / folder), role="model", dtype=torch.float32, trust=DEFAULT_TRUST, in_4bit=False
    )  # fmt: skip


def test_the_global_generators_are_the_caller_s_and_adapters_follow_from_the_seed(unsloth, base):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # the checker of shapes draws from `random`
    drawn = [
        adapt_by_unsloth(loaded(base), PPOConfig(**BY_UNSLOTH), seed=seed).state_dict()[A] for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_missing_weights_are_refused(unsloth, base, tmp_path):
    weights = load_file(base / "base" / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    byte_tokenizer().save_pretrained(tmp_path / "cut")
    tiny_causal_lm(layers=1).config.save_pretrained(tmp_path / "cut")
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's tensors \(model.layers.0.mlp.down_proj.weight\)"):
        loaded(tmp_path, "cut")


def test_a_fallback_to_other_types_is_refused(unsloth, base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'nearstep[quant]'")
    with pytest.raises(ModelError, match="did not load the weights in 4 bits"):
        made(tmp_path, base, load_in_4bit=True)


def test_a_fallback_to_another_precision_is_refused(unsloth, base, tmp_path):
    unsloth.FastLanguageModel.loads_dtype = torch.float16
    with pytest.raises(ModelError, match=r"loaded weights of torch.float16 where dtype = torch.bfloat16 was asked"):
        made(tmp_path, base, dtype="bfloat16")


@pytest.mark.parametrize(("changes", "parts", "words"), [
    ({}, {"model": tiny_causal_lm(layers=1)}, "model was passed as an object"),
    ({"use_peft": False}, {}, "Set use_peft, or give a folder of adapters"),
    ({}, {"peft_config": LoraConfig(task_type="CAUSAL_LM")}, "peft_config was passed"),
    ({"folder": "adapters"}, {}, "would merge the adapters of the folder"),
])  # fmt: skip
def test_what_it_cannot_load_is_refused(unsloth, base, tmp_path, changes, parts, words):
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, base, parts=parts, **changes)


@pytest.mark.parametrize(("device", "words"), [
    ("cuda", "use_cpu: unsloth was imported for the GPU"), ("mlx", "it works on mlx here"),
])  # fmt: skip
def test_another_device_is_refused(unsloth, base, tmp_path, device, words):
    unsloth.DEVICE_TYPE = device
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, base)


@pytest.mark.parametrize(("given", "words"), [
    ({"dtype": "float64"}, "dtype = float64 is none of its types"),
    ({"lora_target_modules": ["q_proj", "lm_head"]}, "lora_target_modules names lm_head, which it trains whole"),
    ({"lora_modules_to_save": ["lm_head"]}, "moves their originals off the device"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type = fp4"),
    ({"dp_shard": -1}, "dp_shard deals weights out"), ({"zero_stage": 3}, "zero_stage deals weights out"),
    ({"engine": "continuous_batching"}, "engine = continuous_batching keeps keys"),
])  # fmt: skip
def test_settings_that_it_cannot_keep_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        PPOConfig(**(BY_UNSLOTH | given))


def test_it_must_come_first(monkeypatch, base, tmp_path):
    monkeypatch.setitem(sys.modules, "unsloth", stand_in())  # behind what it changes
    with pytest.raises(ConfigError, match=r"transformers, (trl, )?peft came first"):
        made(tmp_path, base)


@pytest.mark.parametrize(
    ("spelled", "found"), [("unsloth", "unsloth"), ("trl", "transformers"), ("auto", "transformers")]
)
def test_a_backend_of_other_libraries_is_the_loader(spelled, found):
    with pytest.warns(UserWarning, match="backend is called model_loader here"):
        assert PPOConfig(backend=spelled, use_peft=True).model_loader == found


ORDER = """
import sys
sys.path.insert(0, {folder!r})
from nearstep import create_rl_trainer
try:
    create_rl_trainer("policy", "prompts.jsonl", backend="unsloth", reward_functions=["length"])
except Exception as error:
    print(type(error).__name__, error)
names = list(sys.modules)
print(names.index("unsloth.early") < names.index("transformers"))
"""


@pytest.mark.slow  # a process of its own
@pytest.mark.timeout(700)
def test_one_call_imports_it_before_what_it_changes(tmp_path):
    """In a script as the guide has it, which imports neither; the package fails later, for it is empty."""
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "early.py").write_text("")
    package = "from . import early\nimport transformers\nDEVICE_TYPE, __version__ = 'cpu', '0'\n"
    (tmp_path / "unsloth" / "__init__.py").write_text(package)
    done = subprocess.run(
        [sys.executable, "-c", ORDER.format(folder=str(tmp_path))], capture_output=True, text=True, cwd=tmp_path,
        timeout=600, check=True,
    )  # fmt: skip
    said, in_order = done.stdout.strip().rsplit("\n", 1)
    assert in_order == "True"
    assert "unsloth" not in said.replace(str(tmp_path), "")  # it got past the loader: the policy's folder is missing
