"""`accelerate launch` with the example files: runs of two processes, and the launch that starts one is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import byte_tokenizer, tiny_causal_lm

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a policy and prompts."""
    folder = tmp_path_factory.mktemp("accelerate")
    tiny_causal_lm().save_pretrained(folder / "policy")
    byte_tokenizer().save_pretrained(folder / "policy")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abcdefgh"))
    return folder


def launch(world, out, *flags, script=None, words=()):
    """A launch of two processes; four updates."""
    script = script or ROOT / "examples" / "scripts" / "ppo" / "decoupled.py"
    command = [
        *flags, str(script), "--dataset_name", str(world / "prompts.jsonl"), "--model_name_or_path",
        str(world / "policy"), "--reward_funcs", "length", "--output_dir", str(out), "--total_episodes", "16",
        "--per_device_train_batch_size", "4", "--response_length", "4", "--num_sample_generations", "0",
        "--use_cpu", "true", *words,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *command], capture_output=True, text=True, timeout=900,
        check=False, env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip


def example(name, folder):
    """One of the example files for two processes, in float32."""
    found = yaml.safe_load((ROOT / "examples" / "accelerate_configs" / f"{name}.yaml").read_text())
    place = folder / f"{name}.yaml"
    place.write_text(yaml.safe_dump({**found, "num_processes": 2, "mixed_precision": "no", "main_process_port": 0}))
    return str(place)


@pytest.mark.parametrize(("name", "said"), [("multi_cpu", ""), ("fsdp2", "dp_shard = -1")])
def test_a_launch_of_two_processes_trains(world, tmp_path, name, said):
    done = launch(world, tmp_path / "out", "--config_file", example(name, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stderr
    info = json.loads((tmp_path / "out" / "run_info.json").read_text())
    assert "2" in json.dumps(info)
    assert (tmp_path / "out" / "policy" / "model.safetensors").exists()


@pytest.mark.parametrize("flags", [("--cpu", "--num_processes", "2"), ("MULTI_CPU",)])
def test_a_launch_that_starts_one_process_is_refused(world, tmp_path, flags):
    if flags == ("MULTI_CPU",):
        place = tmp_path / "cpu.yaml"
        place.write_text(yaml.safe_dump({
            "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2,
            "num_machines": 1, "use_cpu": True, "mixed_precision": "no",
        }))  # fmt: skip
        flags = ("--config_file", str(place))
    done = launch(world, tmp_path / "out", *flags)
    assert done.returncode != 0
    assert "accelerate launch was told of several processes and started one" in done.stderr
    assert "accelerate_configs/multi_cpu.yaml" in done.stderr
    assert not (tmp_path / "out").exists()
