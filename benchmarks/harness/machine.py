"""What numbers were measured with, for every results file: commit, machine, processor features, versions, GPU."""

import argparse
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
VECTOR_FEATURES = ("avx", "amx", "fma", "f16c", "sse4_2", "neon", "asimd", "sve")  # beginnings of names that matter
NEVER_ON_A_GPU = "cuda has not been run yet: no GPU was at hand"


def machine(threads: int = 1) -> dict[str, object]:
    """The facts that stand in every results file; `threads` is what the measured processes used."""
    return {
        "commit": commit(), "source": source_digest(), "processor": processor_name(),
        "features": vector_features(), "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(), "threads": threads, "load_average": round(os.getloadavg()[0], 2),
        "gpu": gpu(), "gpu_driver": gpu_driver(), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "transformers", "numpy", "nearstep")},
    }  # fmt: skip


def commit() -> str:
    """The commit of this repository, with `-changed` where files that are no results differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git repository here"
    return f"{name}-changed" if changed else name


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def source_digest() -> str:
    """The first digits of a SHA-256 over nearstep's files: it names the code where there is no git."""
    digest, root = hashlib.sha256(), REPOSITORY / "src" / "nearstep"
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _cpu_lines(*names: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() in names]


def processor_name() -> str:
    """As the system names it."""
    return next(iter(_cpu_lines("model name")), platform.processor() or platform.machine())


def vector_features() -> list[str]:
    """The instruction sets that kernels choose by, such as avx2 and avx512f."""
    words = next(iter(_cpu_lines("flags", "Features")), "").split()
    return sorted(word for word in words if word.startswith(VECTOR_FEATURES))


def gpu() -> str | None:
    """Name, memory and compute capability of the GPU in use."""
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"


def gpu_driver() -> str | None:
    """Version of the driver, as nvidia-smi tells it, beside the CUDA that torch was built with."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        told = ["unknown"]
    return f"{told[0]}, CUDA {torch.version.cuda}"


def installed(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def sentence(facts: Mapping[str, object]) -> str:
    """The facts as a paragraph in Markdown."""
    return "Measured with: " + "; ".join(f"{name} {_shown(value)}" for name, value in facts.items()) + "."


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, the same in every script."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=NEVER_ON_A_GPU)


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """End with one line where a GPU is asked for and none is there."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU (torch.cuda.is_available() is False)")


def at_least_one(text: str) -> int:
    """A count on the command line."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return count
