"""Makes `tests/parity/recorded/` again: from TRL itself, installed in an environment of its own, and from formulas.

    python tests/parity/record/make.py --venv /tmp/trl

The environment is made if the folder is not there. Nothing of TRL is kept in this repository but the numbers. The
formulas are those of Divergence PPO's authors, written out in `stable_rl.py`; they need NumPy only.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
RECORDED = REPOSITORY / "tests" / "parity" / "recorded"
# TRL imports requests and does not say so.
PACKAGES = ("torch", "transformers", "trl==1.8.0", "requests")


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with TRL in it; made if it is not there, or not whole."""
    python, whole = folder.resolve() / "bin" / "python", folder / "installed"
    if not whole.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *constraints, *PACKAGES], check=True)
        whole.touch()
    return python


def run_module(python: Path, module: str, *arguments: str) -> None:
    """Run a module of this repository under another Python, on one thread and without the network."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [str(python), "-m", module, *arguments]
    subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, **quiet})


def main() -> None:
    """Record everything that `test_trl_*.py` and `test_stable_rl.py` compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="folder of TRL's environment, outside the repository")
    python = environment(parser.parse_args().venv)
    run_module(python, "tests.parity.record.dppo", "--output", str(RECORDED / "dppo.npz"))
    run_module(python, "tests.parity.record.stable_rl", "--output", str(RECORDED / "stable_rl.npz"))
    for scenario in ("plain", "shaped"):
        output = RECORDED / f"ppo_{scenario}.npz"
        run_module(python, "tests.parity.record.ppo", "--scenario", scenario, "--output", str(output))


if __name__ == "__main__":
    main()
