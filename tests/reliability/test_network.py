"""R33: a run goes nowhere that was not named: in a network namespace without routes it ends well and tries nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

ALONE = ("unshare", "--user", "--map-root-user", "--net")
# Python imports it first of all, in each process: what it is asked to reach is noted, but for sockets of the machine.
WATCH = """
import os, socket
def note(what, place):
    if isinstance(place, tuple) or what == "getaddrinfo":
        with open(os.environ["WATCHED"], "a") as file:
            print(what, place, file=file)
def watch(owner, name):
    real = getattr(owner, name)
    def watched(*given, **named):
        place = given[0] if name == "getaddrinfo" else given[-1]
        note(name, place)
        return real(*given, **named)
    setattr(owner, name, watched)
watch(socket, "getaddrinfo")
class Watched(socket.socket):
    pass
for name in ("connect", "connect_ex", "sendto"):
    watch(Watched, name)
socket.socket = Watched
"""


def possible() -> bool:
    """Whether network namespaces may be made here."""
    return shutil.which("unshare") is not None and subprocess.run([*ALONE, "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    for name, model in (("policy", tiny_causal_lm()), ("scorer", tiny_scalar_model())):
        model.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    (place / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"number {n}"}) for n in range(8)))
    pairs = [{"prompt": f"n {n}", "chosen": "yes", "rejected": f"no {n}"} for n in range(12)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return place


def run_alone(folder, tmp_path, words):
    """Run a command without a network, with the hub's variables unset; what it tried to reach."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    unset = ("HF_", "TRANSFORMERS_", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "WANDB")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    path = [str(tmp_path / "watch"), environment.get("PYTHONPATH", "")]
    environment |= {"WATCHED": str(tmp_path / "tried"), "PYTHONPATH": os.pathsep.join(path), "HF_HOME": str(tmp_path)}
    command = [*ALONE, sys.executable, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    tried = tmp_path / "tried"
    return done, tried.read_text().splitlines() if tried.exists() else []


PPO = ["-m", "nearstep", "ppo", "--model_name_or_path", "policy", "--reward_model_path", "scorer", "--dataset_name",
       "prompts.jsonl", "--eval_dataset_name", "prompts.jsonl", "--eval_steps", "1", "--total_episodes", "16",
       "--per_device_train_batch_size", "8", "--response_length", "4", "--save_steps", "1", "--report_to",
       "tensorboard", "--use_cpu"]  # fmt: skip
REWARD = ["-m", "nearstep", "reward", "--model_name_or_path", "policy", "--dataset_name", "pairs.jsonl", "--max_steps",
          "2", "--per_device_train_batch_size", "4", "--use_cpu"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="no network namespace may be made here")
@pytest.mark.parametrize("words", [PPO, REWARD, [*PPO, "--use_peft"]], ids=["ppo", "reward", "adapters"])
def test_r33_a_run_without_a_network_ends_well_and_reaches_for_nothing(words, folder, tmp_path):
    done, tried = run_alone(folder, tmp_path, [*words, "--output_dir", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert tried == []


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="no network namespace may be made here")
def test_r33_what_reaches_out_is_noticed(folder, tmp_path):
    code = "import urllib.request\ntry: urllib.request.urlopen('http://192.0.2.1/', timeout=1)\nexcept OSError: pass"
    assert "connect ('192.0.2.1', 80)" in run_alone(folder, tmp_path, ["-c", code])[1]
    (tmp_path / "hub").mkdir()
    code = "from huggingface_hub import HfApi\ntry: HfApi().model_info('a/b')\nexcept Exception: pass"
    assert any("huggingface.co" in line for line in run_alone(folder, tmp_path / "hub", ["-c", code])[1])
