"""R28, R29: what is planted in a checkpoint, a model folder or a data folder is neither unpickled nor run."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nearstep.checkpoint.seal import MANIFEST, read_manifest
from nearstep.cli.main import main
from nearstep.common.errors import NearstepError
from tests.checkpoint.saved_runs import trainer_of
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

CODE_FILES = ("reward.py", "data.py", "modeling_llama.py", "tokenization.py", "__init__.py", "generate.py",
              "conftest.py", "sitecustomize.py", "custom_generate/generate.py")  # fmt: skip


class Touches:
    """Makes a file where it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, total_episodes=16).train()
    return folder


def reseal(checkpoint):
    """A manifest that fits what lies in the folder, as somebody would write it who knows the format."""
    manifest = read_manifest(checkpoint)
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    files.pop(MANIFEST)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    (checkpoint / MANIFEST).write_text(replace(manifest, sizes=sizes, hashes=hashes).text)


def plant(how, checkpoint, canary):
    tensors = sorted(checkpoint.rglob("*.safetensors"))
    poison = pickle.dumps(Touches(canary))
    if how == "a pickle beside":
        (checkpoint / "optimizer.pt").write_bytes(poison)
    elif how == "pickles for tensors":
        for path in tensors:
            path.write_bytes(poison)
    elif how == "a pickle under torch's name":
        for path in tensors:
            path.with_name("pytorch_model.bin").write_bytes(poison)
            path.unlink()
    elif how == "a header of exabytes":
        for path in tensors:
            path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    elif how == "a link":
        outside = canary.with_name("outside.safetensors")
        outside.write_bytes(poison)
        tensors[0].unlink()
        tensors[0].symlink_to(outside)
    elif how == "nested JSON":
        for path in checkpoint.rglob("*.json"):
            if path.name != MANIFEST:
                path.write_text("[" * 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a pickle beside", "pickles for tensors", "a pickle under torch's name",
                                 "a header of exabytes", "a link", "nested JSON"])  # fmt: skip
def test_r28_what_is_planted_in_a_checkpoint_is_refused(how, run, tmp_path):
    folder, canary = shutil.copytree(run, tmp_path / "run"), tmp_path / "canary"
    plant(how, folder / "checkpoint-2", canary)
    for sealed in (False, True):
        if sealed:
            reseal(folder / "checkpoint-2")
        if sealed and how == "a pickle beside":
            continue  # it fits its manifest then, and is never read
        with pytest.raises(NearstepError):
            trainer_of(folder, total_episodes=24, resume=str(folder / "checkpoint-2")).train()
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "policy/../../outside.json"])
def test_r28_names_in_a_manifest_that_lead_out_are_refused(name, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "outside.json").write_text("{}")
    checkpoint = folder / "checkpoint-2"
    manifest = read_manifest(checkpoint)
    size, digest = 2, hashlib.sha256(b"{}").hexdigest()
    changed = replace(manifest, sizes=manifest.sizes | {name: size}, hashes=manifest.hashes | {name: digest})
    (checkpoint / MANIFEST).write_text(changed.text)
    with pytest.raises(NearstepError, match="missing"):
        trainer_of(folder, total_episodes=24, resume=str(checkpoint)).train()


def test_r29_code_that_lies_in_folders_is_not_run(tmp_path):
    """Beside weights, beside rows and under the names that libraries once ran; and named by the rows themselves."""
    code = f"open({str(tmp_path / 'canary')!r}, 'w')\ndef reward(completions, **k): return [0.0] * len(completions)\n"
    for name, model in (("policy", tiny_causal_lm()), ("scorer", tiny_scalar_model())):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    data = tmp_path / "data"
    data.mkdir()
    row = {"reward_funcs": f"{data}/data.py:reward", "reward_model": {"path": f"{data}/data.py"}, "auto_map": "data.py"}
    (data / "train.jsonl").write_text("\n".join(json.dumps({"prompt": f"number {n}"} | row) for n in range(8)))
    for folder in (tmp_path / "policy", tmp_path / "scorer", data):
        for file in (*CODE_FILES, f"{folder.name}.py"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(code)
    words = {
        "model_name_or_path": tmp_path / "policy", "reward_model_path": tmp_path / "scorer", "dataset_name": data,
        "output_dir": tmp_path / "out", "total_episodes": 8, "per_device_train_batch_size": 8, "response_length": 4,
        "use_cpu": "true",
    }  # fmt: skip
    assert main(["ppo", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]) == 0
    assert not (tmp_path / "canary").exists()


def test_r29_a_chat_template_cannot_leave_its_sandbox(tmp_path):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages }}"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    rows = [{"prompt": [{"role": "user", "content": "hello"}]}] * 8
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = {"model_name_or_path": tmp_path / "policy", "dataset_name": tmp_path / "rows.jsonl",
             "reward_funcs": "length", "output_dir": tmp_path / "out", "use_cpu": "true"}  # fmt: skip
    assert main(["ppo", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]) != 0
