"""How fast this machine is: products, memory, calls of kernels, and messages between processes; and how much it holds.

Each rate is the median of tries that last some time, so other work on the machine is in it.
"""

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from nearstep.planning.machines import CALL_SECONDS, NETWORK_RATE, RESERVED_BYTES, RESERVED_SHARE, Machine

SIDES = {"cpu": 1024, "cuda": 8192}
STREAM_BYTES = 2**28  # well above any cache
MESSAGE_BYTES = 2**25
MESSAGES = 5
CALLS = 200  # of a kernel that does nothing much, in one try
TRIES, SECONDS = 5, 0.5  # of each measurement, at least
GROUPS = (2, 4, 8)  # processes that send to each other
# What passes of this library reach of these rates: products of layers are smaller than squares.
ATTAINED_FLOPS, ATTAINED_MEMORY = 0.8, 0.9


def this_machine(
    *, use_cpu: bool = False, links: bool = False, clock: Callable[[], float] = time.perf_counter
) -> Machine:
    """Measure the devices of this machine; with `links` messages between processes as well, which takes longer.

    The `clock` is the wall's, or that of the process where other programs shall not count.
    """
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    float32, bfloat16 = (_matrix_flops(dtype, device, clock) for dtype in (torch.float32, torch.bfloat16))
    is_gpu, memory = device == "cuda", _memory(device)
    count = torch.cuda.device_count() if is_gpu else _processors()
    rate = _memory_rate(device, clock)
    machine = Machine(
        name=torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        memory_bytes=memory,
        float32_flops=float32,
        bfloat16_flops=bfloat16,
        memory_rate=rate,
        node_rate=rate / 4,
        network_rate=NETWORK_RATE,
        call_seconds=_call_seconds(device, clock),
        devices=count,
        is_gpu=is_gpu,
        reserved_bytes=RESERVED_BYTES + int(RESERVED_SHARE * memory) if is_gpu else 0,
        attained_flops=ATTAINED_FLOPS,
        attained_memory=ATTAINED_MEMORY,
        measured=True,
    )
    if not links:
        return machine
    return replace(machine, link_rates={str(size): _link_rate(size, device) for size in GROUPS if size <= count})


def _matrix_flops(dtype: torch.dtype, device: str, clock: Callable[[], float]) -> float:
    side = SIDES[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(partial(torch.mm, left, right), device, clock)


def _memory_rate(device: str, clock: Callable[[], float]) -> float:
    """Bytes that a matrix times a vector reads, the way decoding reads weights."""
    side = math.isqrt(STREAM_BYTES // 4)
    matrix, vector = torch.randn(side, side, device=device), torch.randn(side, device=device)
    return STREAM_BYTES / _seconds(partial(torch.mv, matrix, vector), device, clock)


def _call_seconds(device: str, clock: Callable[[], float]) -> float:
    """Of a kernel on few numbers, as torch calls it."""
    few = torch.zeros(64, device=device)

    def calls() -> None:
        for _ in range(CALLS):
            few.add(1)

    return max(_seconds(calls, device, clock) / CALLS, CALL_SECONDS / 8)


def _seconds(work: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """The median of many tries, behind one that counts for nothing."""
    work()
    took: list[float] = []
    while len(took) < TRIES or sum(took) < SECONDS:
        if device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(clock() - began)
    return median(took)


def _memory(device: str) -> int:
    """Of one GPU; on a CPU what is free, for one process."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _link_rate(size: int, device: str) -> float:
    """Bytes that each of so many processes sends per second while they sum a tensor."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        spawn(_sum_together, (size, device, place), nprocs=size)
        seconds = float((place / "seconds").read_text(encoding="ascii"))
    return 2 * (size - 1) / size * MESSAGE_BYTES / seconds


def _sum_together(rank: int, size: int, device: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
    )
    values = torch.ones(MESSAGE_BYTES // 4, device=device)
    took: list[float] = []
    for _ in range(MESSAGES + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
        values.fill_(1.0)
    if rank == 0:
        (folder / "seconds").write_text(str(median(took[1:])), encoding="ascii")
    dist.destroy_process_group()
