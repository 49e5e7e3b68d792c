"""The least time that the arithmetic of an update takes on this machine: operations and bytes over measured rates.

6·N·D operations for an epoch over D tokens with N weights of a trained network (2 forward, 4 backward), 2·N·D for a
scoring pass, attention besides; N is what a token passes through, so embeddings do not count, and the output layer only
where a response stands. A prompt counts once, however many samples it has. A decoding step takes as long as its
operations or as reading its weights and cache, whichever is more.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from benchmarks.harness.workload import DTYPES, LengthPlan, ModelSize, Workload

SQUARES = (1024, 2048)
STREAM_BYTES = 2**28  # well above any cache
TRIES, SECONDS = 7, 2.0  # of each measurement, at least


@dataclass(frozen=True)
class Rates:
    """What this machine does per second in one thread, or on its GPU, for as long as a phase takes.

    Not its best moment: other work on the machine slows products and phases alike, and would else be in the ratio.
    """

    matrix_flops: float  # square products
    memory_bytes: float  # matrix times vector, the way decoding reads weights

    def mean(self, other: "Rates") -> "Rates":
        """Between two measurements, one before a phase and one after it."""
        return Rates((self.matrix_flops + other.matrix_flops) / 2, (self.memory_bytes + other.memory_bytes) / 2)


@dataclass(frozen=True)
class Floor:
    """Least seconds of each phase."""

    generate: float
    score: float
    update: float

    @property
    def total(self) -> float:
        """Least seconds of an update."""
        return self.generate + self.score + self.update


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rollout: one prompt with all its responses each."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @staticmethod
    def of(workload: Workload) -> "Lengths":
        """Those that a workload plans."""
        plan = LengthPlan.of(workload).by_prompt
        return Lengths(tuple((len(prompt), lengths) for prompt, lengths in plan.items()))

    @property
    def responses(self) -> list[int]:
        """Response tokens of every row."""
        return [length for _, lengths in self.groups for length in lengths]

    @property
    def actions(self) -> int:
        """All response tokens."""
        return sum(self.responses)

    @property
    def prompts(self) -> int:
        """Prompt tokens, a prompt with several samples once."""
        return sum(prompt for prompt, _ in self.groups)

    @property
    def tokens(self) -> int:
        """Tokens that a network must see."""
        return self.prompts + self.actions

    @property
    def rows_tokens(self) -> int:
        """Prompt and response tokens row by row, as the user counts them."""
        return sum(prompt * len(lengths) for prompt, lengths in self.groups) + self.actions

    @property
    def seen(self) -> int:
        """Pairs of a token and one that it attends to."""
        return self.prompt_seen + sum(
            length * prompt + _triangle(length) for prompt, lengths in self.groups for length in lengths
        )

    @property
    def prompt_seen(self) -> int:
        """The same within prompts."""
        return sum(_triangle(prompt) for prompt, _ in self.groups)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def body_weights(size: ModelSize) -> int:
    """Weights of the products that every token passes through."""
    width = size.hidden // size.heads
    attention = 2 * size.hidden * size.hidden + 2 * size.hidden * size.kv_heads * width
    return size.layers * (attention + 3 * size.hidden * size.intermediate)


def head_weights(size: ModelSize) -> int:
    """Weights of the output layer."""
    return size.hidden * size.vocabulary


def forward_flops(size: ModelSize, *, tokens: int, seen: int, logits: int) -> float:
    """Operations of one forward pass: scores and mixing take 2 operations each per pair and width."""
    return 2.0 * (body_weights(size) * tokens + 2 * size.layers * size.hidden * seen + head_weights(size) * logits)


def floor(workload: Workload, rates: Rates) -> Floor:
    """Least seconds of a workload."""
    size, lengths = workload.size, Lengths.of(workload)
    with_critic = workload.kind == "ppo"
    policy = forward_flops(size, tokens=lengths.tokens, seen=lengths.seen, logits=lengths.actions)
    scalar = forward_flops(size, tokens=lengths.tokens, seen=lengths.seen, logits=0)
    score, update = 0.0, 0.0
    if workload.kind != "rollout":
        critic = scalar if with_critic and not workload.shared_trunk else 0.0
        score = policy + critic + scalar if with_critic else 0.0  # reference, critic, reward model
        update = workload.epochs * 3 * (policy + critic)
    return Floor(_generate(workload, lengths, rates), score / rates.matrix_flops, update / rates.matrix_flops)


def _generate(workload: Workload, lengths: Lengths, rates: Rates) -> float:
    """Prefill, then step by step the rows that are not done."""
    size, width = workload.size, DTYPES[workload.dtype].itemsize
    first = forward_flops(size, tokens=lengths.prompts, seen=lengths.prompt_seen, logits=len(lengths.groups))
    seconds = first / rates.matrix_flops
    weights_bytes = width * (body_weights(size) + head_weights(size))
    cache_bytes = width * 2 * size.layers * size.kv_heads * (size.hidden // size.heads)
    for step in range(1, max(lengths.responses)):
        live = [prompt + step for prompt, responses in lengths.groups for length in responses if length > step]
        flops = forward_flops(size, tokens=len(live), seen=sum(live), logits=len(live))
        read = weights_bytes + cache_bytes * sum(live)
        seconds += max(flops / rates.matrix_flops, read / rates.memory_bytes)
    return seconds


def measure_rates(dtype: str, device: str) -> Rates:
    """The rates of this machine, each the median of several tries; of the squares the one that suits it better."""
    best = 0.0
    for side in SQUARES if device == "cpu" else [4 * side for side in SQUARES]:
        left, right = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
        best = max(best, 2 * side**3 / _seconds(partial(torch.mm, left, right), device))
    side = math.isqrt(STREAM_BYTES // 4)
    matrix, vector = torch.randn(side, side, device=device), torch.randn(side, device=device)
    return Rates(best, STREAM_BYTES / _seconds(partial(torch.mv, matrix, vector), device))


def _seconds(work: Callable[[], object], device: str) -> float:
    """The median of many tries: CPU seconds, or on a GPU wall seconds."""
    now = time.process_time if device == "cpu" else time.perf_counter
    took: list[float] = []
    while len(took) < TRIES or sum(took) < SECONDS:
        if device == "cuda":
            torch.cuda.synchronize()
        began = now()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(now() - began)
    return median(took)
