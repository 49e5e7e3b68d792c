"""What `nearstep doctor` looks at on a machine: versions, extras, processors, memory, disk, GPU, sandbox."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from nearstep import __version__
from nearstep.config.launched import problems_as_launched
from nearstep.config.ppo import PPOConfig

# Those that change what a run does, or how fast; the values of others are nobody's business.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE",
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NCCL_DEBUG", "PYTHONHASHSEED",
)  # fmt: skip
GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 2 * GIB, 2 * GIB  # below which not even a small model is saved or trained
SANDBOX_SECONDS = 10


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `missing`: something optional is not there; `problem`: a run would suffer."""

    name: str
    state: Literal["ok", "missing", "note", "problem"]
    text: str
    next: str = ""


def checks() -> Iterator[Check]:
    """Everything, in the order in which it is told."""
    yield Check("nearstep", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    yield from _packages()
    yield _processors()
    yield _memory()
    yield _disk(Path.cwd())
    yield _gpu()
    yield _sandbox()
    yield _environment(os.environ)
    for problem in problems_as_launched(os.environ, PPOConfig()):
        yield Check("launcher", "problem", problem)


def _packages() -> Iterator[Check]:
    """What nearstep needs, then each extra: installed, and in a version that it was made for."""
    lines = [line for line in requires("nearstep") or () if not line.startswith("nearstep")]
    wanted = [(line.partition(";")[0].strip(), re.findall(r"extra == ['\"]([\w-]+)", line)) for line in lines]
    own = [needed for needed, extras in wanted if not extras]
    yield _of(own, "packages", "problem", "pip install nearstep")
    for extra in dict.fromkeys(extra for _, extras in wanted for extra in extras):
        needed = [each for each, extras in wanted if extra in extras and each not in own]
        if extra not in ("dev", "docs", "release", "mutants", "bench", "all"):
            yield _of(needed, f"extra {extra}", "missing", f'pip install "nearstep[{extra}]"')


def _of(needed: Sequence[str], name: str, state: Literal["missing", "problem"], install: str) -> Check:
    from transformers.utils.versions import require_version  # of all that every run needs, it compares versions

    names = {each: re.split(r"[^\w.-]", each)[0] for each in needed}
    found = {each: _installed(package) for each, package in names.items()}
    absent = [names[each] for each, has in found.items() if has is None]
    unfit = []
    for each in needed:
        try:
            if found[each] is not None:
                require_version(each)
        except ImportError:
            unfit.append(f"{found[each]} (wanted: {each})")
    said = [f"not installed: {', '.join(absent)}"] * bool(absent) + [f"other version: {', '.join(unfit)}"] * bool(unfit)
    if said:
        return Check(name, "problem" if unfit else state, "; ".join(said), install)
    return Check(name, "ok", ", ".join(f"{names[each]} {has}" for each, has in found.items()))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processors() -> Check:
    """How many there are for this process, and how many threads torch would take."""
    import torch

    mine = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    text = f"{mine} of {os.cpu_count()} for this process, {threads} torch threads, load {load:.1f}"
    if threads > mine:
        return Check("processors", "problem", text, f"OMP_NUM_THREADS={mine}: more threads than processors are slower")
    if load > 1.5 * mine:
        return Check("processors", "note", text, "other programs are busy here: times will be long and uneven")
    return Check("processors", "ok", text, "OMP_NUM_THREADS=1 is faster for models of a few million weights")


def _memory() -> Check:
    """What is free, and what a container allows."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return Check("memory", "note", "not known on this system")
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    limit = _container_limit()
    text = f"{free / GIB:.1f} GiB free of {total / GIB:.1f} GiB"
    if limit is not None and limit < total:
        text, free = f"{text}; the container may use {limit / GIB:.1f} GiB", min(free, limit)
    advice = "PPO holds four models and two optimizers: about 40 bytes for each weight of the policy in float32"
    return Check("memory", "problem" if free < LEAST_MEMORY else "ok", text, advice)


def _container_limit() -> int | None:
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(place).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "problem", f"{folder} cannot be written", "give an output_dir that can")
    advice = "a checkpoint takes about 12 bytes for each weight that trains; save_total_limit bounds them"
    return Check("disk", "problem" if free < LEAST_DISK else "ok", text, advice)


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch finds none"
        return Check("GPU", "missing", f"none: {built}; runs stay on the CPU")
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Check("GPU", "ok", ", ".join(f"{each.name} ({each.total_memory / GIB:.0f} GiB)" for each in names))


def _sandbox() -> Check:
    """Whether bubblewrap can shut code of a policy in, which some rewards run."""
    found = shutil.which("bwrap")
    if found is None:
        return Check("sandbox", "missing", "bubblewrap is not installed: rewards that run code refuse to",
                     "apt install bubblewrap, or isolation = process")  # fmt: skip
    try:
        done = subprocess.run(
            [found, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True,
            timeout=SANDBOX_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("sandbox", "missing", f"bubblewrap does not run: {error}")
    if done.returncode:
        return Check("sandbox", "missing", f"bubblewrap may not: {done.stderr.strip()[:120]}",
                     "allow user namespaces, or isolation = process")  # fmt: skip
    return Check("sandbox", "ok", f"bubblewrap shuts code in ({found})")


def _environment(environment: Mapping[str, str]) -> Check:
    """The variables that matter and are set."""
    found = [f"{name}={environment[name]}" for name in VARIABLES if name in environment]
    found += [f"{name} is set" for name in ("HF_TOKEN", "WANDB_API_KEY") if environment.get(name)]
    found += [f"{name}={value}" for name, value in environment.items() if name.startswith("ACCELERATE_")]
    return Check("environment", "ok", ", ".join(found) or "none of the variables that matter is set")
