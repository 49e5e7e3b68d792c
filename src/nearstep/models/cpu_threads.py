"""How loops that numba compiles are spread over the threads that torch may use."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVarTuple

import torch
from torch import Tensor

Share = TypeVarTuple("Share")
SMALLEST_SHARE = 2**15  # numbers that one thread has done before another has begun


@cache
def loops_there() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def arrays(*tensors: Tensor) -> list[Any]:
    """The memory of tensors as compiled loops take it."""
    return [tensor.detach().numpy() for tensor in tensors]


def even_shares(lines: int, width: int) -> list[tuple[int, int]]:
    """Where each thread's lines begin and end, one thread where there is little to do; `width` numbers a line."""
    threads = max(1, min(torch.get_num_threads(), lines, lines * width // SMALLEST_SHARE))
    return [(lines * number // threads, lines * (number + 1) // threads) for number in range(threads)]


def in_threads(run: Callable[[*Share], None], shares: Sequence[tuple[*Share]]) -> None:
    """The first share here, the others beside it; the loops let go of Python's lock."""
    others = [_pool(len(shares) - 1).submit(run, *share) for share in shares[1:]]
    run(*shares[0])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="loops")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
