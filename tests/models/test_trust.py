"""What a model folder may bring along: no code and no pickle unasked, and a damaged file is named in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nearstep.common.errors import ModelError, RewardError
from nearstep.common.trust import Trust
from nearstep.models.load import family_of, load_adapted_policy, load_policy, load_scalar_model
from nearstep.models.own_code import code_arguments
from nearstep.models.tokenizers import load_tokenizer
from tests.models.odd_folders import code_folder, pickled_folder
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

READ = {"role": "model", "dtype": torch.float32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy and a reward model, and adapters over the policy."""
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("folders")
    for name, model in (("policy", tiny_causal_lm()), ("scorer", tiny_scalar_model())):
        model.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    tiny_causal_lm().save_pretrained(place / "shards", max_shard_size="50KB")
    adapted = get_peft_model(load_policy(str(place / "policy"), **READ), LoraConfig(r=2))
    adapted.save_pretrained(place / "adapters")
    return place


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


@pytest.mark.parametrize(
    ("name", "load"), [("policy", load_policy), ("scorer", load_scalar_model), ("adapters", load_adapted_policy)]
)
def test_pickles_are_refused_with_a_command_that_converts_them(name, load, folders, tmp_path):
    folder = pickled_folder(folders / name, tmp_path / name)
    with pytest.raises(ModelError, match=r"_model.bin' are a pickle, .* allow_pickled_weights = true") as refused:
        load(str(folder), **READ)
    allowed = load(str(folder), **READ, trust=Trust(pickled_weights=True)).state_dict()
    [command] = re.findall(r'python -c "([^"]+)"', str(refused.value))
    exec(command, {})
    converted = load(str(folder), **READ).state_dict()
    plain = load(str(folders / name), **READ).state_dict()
    assert all(torch.equal(converted[key], plain[key]) and torch.equal(allowed[key], plain[key]) for key in plain)


@pytest.mark.parametrize(
    ("name", "load"), [("policy", load_policy), ("scorer", load_scalar_model), ("adapters", load_adapted_policy)]
)
def test_a_pickle_that_is_allowed_still_runs_nothing(name, load, folders, tmp_path):
    folder = pickled_folder(folders / name, tmp_path / name, adds=Runs(tmp_path / "canary"))
    for trust in (Trust(), Trust(pickled_weights=True)):
        with pytest.raises(ModelError) as refused:
            load(str(folder), **READ, trust=trust)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_the_command_is_one_for_a_shell(folders, tmp_path):
    folder = pickled_folder(folders / "policy", tmp_path / "a folder")
    with pytest.raises(ModelError) as refused:
        load_policy(str(folder), **READ)
    [command] = re.findall(r'python (-c "[^"]+")', str(refused.value))
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, capture_output=True)
    load_policy(str(folder), **READ)


def damaged(folder: Path, how: str) -> str:
    """Damage a folder with shards; the name of the file that the error must give."""
    shard, index = sorted(folder.glob("model-*"))[0], folder / "model.safetensors.index.json"
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "noise":
        shard.write_bytes(b"\xff" * 100)
    elif how == "huge header":
        shard.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    elif how == "missing":
        shard.unlink()
    elif how == "wrong index":
        read = json.loads(index.read_text())
        first, *_, last = read["weight_map"]
        read["weight_map"][first] = read["weight_map"][last]
        index.write_text(json.dumps(read))
        return index.name
    else:
        index.write_text({"index cut": '{"weight_map":', "index of a list": "[]", "index of numbers": "3"}[how])
        return index.name
    return shard.name


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "huge header", "missing", "wrong index", "index cut",
                                 "index of a list", "index of numbers"])  # fmt: skip
def test_damage_is_told_in_a_sentence_with_the_file(how, folders, tmp_path):
    folder = tmp_path / "policy"
    load_policy(str(folders / "shards"), **READ).save_pretrained(folder, max_shard_size="50KB")
    name = damaged(folder, how)
    with pytest.raises(ModelError) as error:
        load_policy(str(folder), **READ)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_adapters_are_told_in_a_sentence_with_the_file(folders, tmp_path):
    folder = pickled_folder(folders / "adapters", tmp_path / "adapters")
    (folder / "adapter_model.bin").write_bytes((folder / "adapter_model.bin").read_bytes()[:300])
    with pytest.raises(ModelError, match="adapters"):
        load_adapted_policy(str(folder), **READ, trust=Trust(pickled_weights=True))
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"adapter_model.safetensors' are damaged or cut short"):
        load_adapted_policy(str(folder), **READ)


# --- Code


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("config.json", lambda name, trust: family_of(name, trust=trust)),
        ("config.json", lambda name, trust: load_policy(name, **READ, trust=trust)),
        ("config.json", lambda name, trust: load_scalar_model(name, **READ, trust=trust)),
        ("config.json", lambda name, trust: load_tokenizer(name, trust=trust)),
        ("tokenizer_config.json", lambda name, trust: load_tokenizer(name, trust=trust)),
    ],
)
def test_code_in_a_folder_is_not_run_unasked(file, load, folders, tmp_path):
    folder = code_folder(folders / "scorer", tmp_path / "bringing", file)
    for trust in (Trust(), Trust(code=()), Trust(code=(str(folders / "policy"),)), Trust(code=("true",)).for_unnamed()):
        with pytest.raises(ModelError, match=r"points to Python code of its own \(own\..*trust_remote_code = /"):
            load(str(folder), trust)
    assert not (folder / "ran").exists()


def test_code_that_is_allowed_is_told_with_its_hash(folders, tmp_path, capfd):
    folder = code_folder(folders / "policy", tmp_path / "bringing")
    load_policy(str(folder), **READ, trust=Trust(code=(f"{folder}/../bringing",)))
    assert (folder / "ran").exists()
    assert re.search(rf"model: runs the code of {folder}: own.py sha256 [0-9a-f]{{64}}\n", capfd.readouterr().err)


def test_without_its_code_a_model_is_read_by_transformers_class(folders, tmp_path):
    folder = code_folder(folders / "policy", tmp_path / "bringing")
    assert type(load_policy(str(folder), **READ, trust=Trust(code=("false",)))).__name__ == "LlamaForCausalLM"
    assert not (folder / "ran").exists()


def test_code_of_the_model_under_adapters_must_be_named_itself(folders, tmp_path):
    base = code_folder(folders / "policy", tmp_path / "base")
    adapters = pickled_folder(folders / "adapters", tmp_path / "adapters")
    (tmp_path / "adapters" / "adapter_model.bin").unlink()
    (adapters / "adapter_model.safetensors").write_bytes((folders / "adapters/adapter_model.safetensors").read_bytes())
    config = adapters / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
    with pytest.raises(ModelError, match="points to Python code"):
        load_adapted_policy(str(adapters), **READ, trust=Trust(code=("true",)))
    assert not (base / "ran").exists()
    load_adapted_policy(str(adapters), **READ, trust=Trust(code=("true", str(base))))
    assert (base / "ran").exists()


def test_code_of_the_hub_needs_the_commit_that_was_read(folders, tmp_path, monkeypatch):
    folder = code_folder(folders / "policy", tmp_path / "bringing", repository="some/where--")
    for more in ((), ("some/where",), ("some/where@main",), (f"other/place@{'a' * 40}",)):
        with pytest.raises(ModelError, match=r"in 'some/where' .* trust_remote_code = some/where@COMMIT"):
            load_policy(str(folder), **READ, trust=Trust(code=("true", *more)))
    asked = code_arguments(str(folder), "model", Trust(code=("true", f"some/where@{'a' * 40}")))
    assert asked == {"trust_remote_code": True, "code_revision": "a" * 40}
    monkeypatch.setattr("nearstep.models.own_code.cached_file", lambda *given, **named: str(folder / "config.json"))
    with pytest.raises(ModelError, match=r"'some/where' points to Python code .* some/where@COMMIT"):
        code_arguments("some/where", "model", Trust(code=("true",)))
    asked = code_arguments("some/where", "model", Trust(code=(f"some/where@{'a' * 40}",)))
    assert asked == {"trust_remote_code": True, "revision": "a" * 40, "code_revision": "a" * 40}


def test_a_reward_file_in_a_folder_is_no_reward_until_it_is_named(folders, tmp_path):
    from nearstep.rewards.loading import load_function

    folder = code_folder(folders / "scorer", tmp_path / "scorer")
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef reward(completions, **k): return [1.0]"
    (folder / "reward.py").write_text(code)
    with pytest.raises((ModelError, RewardError)):
        load_scalar_model(str(folder), **READ)
    assert not (tmp_path / "ran").exists()
    load_function(f"{folder}/reward.py:reward")
    assert (tmp_path / "ran").exists()
