"""The Slurm script: what it starts on each machine, with stand-ins for Slurm's programs."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "ppo.sbatch"
JOB = {
    "SLURM_JOB_ID": "31007", "SLURM_JOB_NODELIST": "gpu[3-4]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "10",
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """An environment in which srun runs its command here, and torchrun says how it was called."""
    for name, text in {
        "scontrol": '[ "$1 $2 $3" = "show hostnames gpu[3-4]" ] && printf "gpu3\\ngpu4\\n"',
        "srun": 'shift; exec "$@"',
        "torchrun": 'echo "$OMP_NUM_THREADS" "$@"; ${WAIT:-true}; exit ${CODE:-0}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {**JOB, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_every_machine_starts_its_processes_and_meets_at_the_first(slurm):
    done = subprocess.run(["bash", SCRIPT, "--config", "run.yaml"], env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "3", "--nnodes", "2", "--nproc_per_node", "4", "--rdzv_backend", "c10d", "--rdzv_id", "31007",
        "--rdzv_endpoint", "gpu3:31007", "-m", "nearstep", "ppo", "--resume", "auto", "--config", "run.yaml",
    ]  # fmt: skip


def test_its_exit_code_is_that_of_the_run(slurm):
    assert subprocess.run(["bash", SCRIPT], env={**slurm, "CODE": "3"}, capture_output=True).returncode == 3


def test_the_run_is_told_of_the_end(slurm):
    with subprocess.Popen(["bash", SCRIPT], env={**slurm, "WAIT": "exec sleep 60"}, stdout=subprocess.PIPE) as job:
        job.stdout.readline()
        time.sleep(0.2)  # torchrun has spoken; the shell comes to its wait
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 128 + signal.SIGTERM
