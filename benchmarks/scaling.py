"""How nearstep's time and memory grow with rows, response length, vocabulary, K and samples per prompt.

    python -m benchmarks.scaling [--only vocabulary] [--model m]

One thing varies at a time, each point is one update in a process of its own. An exponent is the slope of a line through
the logarithms: 1 where seconds grow in proportion, 0 where nothing grows. Seconds should be linear in tokens. Memory is
what one update needs above weights, gradients and the optimizer's two moments, which belong to the weights and grow
with them; it should not grow with the vocabulary. With adapters nearly nothing but the weights is left out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from statistics import linear_regression
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.floor import Lengths, body_weights, head_weights
from benchmarks.harness.machine import add_device, at_least_one, check_device, machine
from benchmarks.harness.results import MIB, RESULTS, Side, side_of, table, write_results
from benchmarks.harness.workload import DTYPES, SIZES, Workload
from benchmarks.vs_trl import run_process

COLUMNS = ["axis", "value", "tokens", "seconds", "generate", "score", "update", "MiB above state"]
FITS = ["axis", "seconds ~ value^", "seconds ~ tokens^", "µs per further token", "memory ~ value^"]


@dataclass(frozen=True)
class Point:
    """One measured update."""

    axis: str
    value: int
    tokens: int
    side: Side
    extra_mib: float  # above weights, gradients and the optimizer's moments

    def cells(self) -> list[str]:
        """The point as text."""
        phases = [f"{self.side.seconds[phase]:.2f}" for phase in ("generate", "score", "update")]
        return [self.axis, str(self.value), f"{self.tokens:,}", f"{self.side.total:.2f}", *phases,
                f"{self.extra_mib:,.0f}"]  # fmt: skip


def axes(base: Workload) -> Mapping[str, Mapping[int, Workload]]:
    """What varies, and its values."""
    groups = replace(base, kind="dppo", trust_region="topk_tv", generations=4)
    even = replace(base, shortest_prompt=128, longest_prompt=128)
    return {
        "rows": {rows: replace(base, rows=rows) for rows in (8, 16, 32, 64)},
        "response length": {limit: replace(base, response_length=limit) for limit in (32, 64, 128, 256)},
        # The second update is the larger one: Adam's moments are there from its beginning.
        "vocabulary": {size: replace(base, vocabulary=size, updates=2) for size in (16_000, 32_000, 64_000, 128_000)},
        "vocabulary, adapters": {
            size: replace(base, vocabulary=size, updates=2, adapters=True) for size in (32_000, 128_000)
        },
        "K": {top: replace(groups, top_k=top) for top in (5, 20, 80)},
        "samples per prompt": {n: replace(even, rows=4 * n, generations=n) for n in (2, 4, 8, 16)},
    }


def state_mib(workload: Workload) -> float:
    """Gradients and Adam's moments of policy and critic; those of adapters are too small to count."""
    if workload.adapters:
        return 0.0
    size = workload.size
    embeddings = head_weights(size)
    policy = body_weights(size) + embeddings * (1 if size.tied else 2)
    critic = body_weights(size) + embeddings if workload.kind == "ppo" else 0
    # Gradients and moments are float32; narrower weights have float32 masters besides.
    per_weight = 12 if DTYPES[workload.dtype].itemsize == 4 else 16
    return per_weight * (policy + critic) / MIB


def measure(axis: str, value: int, workload: Workload, rounds: int) -> Point:
    """Run one point."""
    records = [run_process("nearstep_side", Path(sys.executable), workload) for _ in range(rounds)]
    side = side_of(records, "cpu_seconds" if workload.device == "cpu" else "wall_seconds")
    return Point(axis, value, Lengths.of(workload).tokens, side, side.memory_mib - state_mib(workload))


def exponent(points: Sequence[Point], across: str, what: str) -> float:
    """The slope of a straight line through logarithms."""
    numbers = [{"value": p.value, "tokens": p.tokens, "seconds": p.side.total, "memory": p.extra_mib} for p in points]
    xs, ys = ([log(max(1e-9, number[name])) for number in numbers] for name in (across, what))
    return linear_regression(xs, ys).slope if len(set(xs)) > 1 else float("nan")


def fit(axis: str, points: Sequence[Point]) -> dict[str, Any]:
    """Exponents of one axis, and the cost of a further token."""
    tokens = [float(point.tokens) for point in points]
    per_token = linear_regression(tokens, [p.side.total for p in points]).slope if len(set(tokens)) > 1 else None
    return {
        "axis": axis,
        "seconds ~ value^": exponent(points, "value", "seconds"),
        "seconds ~ tokens^": None if per_token is None else exponent(points, "tokens", "seconds"),
        "µs per further token": None if per_token is None else 1e6 * per_token,
        "memory ~ value^": exponent(points, "value", "memory"),
    }


def shown(fitted: Mapping[str, Any]) -> list[str]:
    """A line of fits as text."""
    numbers = ["" if fitted[name] is None else f"{fitted[name]:.2f}" for name in FITS[1:]]
    return [str(fitted["axis"]), *numbers]


def main(words: Sequence[str] | None = None) -> None:
    """Measure all points, print fits, write benchmarks/results/scaling.*."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.add_argument(
        "--model", choices=list(SIZES), help="s: 10 M weights (CPU), l: 1.2 B (GPU) unless given; tiny is for tests"
    )
    parser.add_argument("--rounds", type=at_least_one, default=1, help="processes for each point")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS", choices=list(axes(Workload("", "ppo"))))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    check_device(parser, options.device)
    model = options.model or ("l" if options.device == "cuda" else "s")
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    base = Workload("scaling", "ppo", model=model, rows=16, epochs=1, device=options.device, dtype=dtype)
    points: dict[str, list[Point]] = {}
    for axis, values in axes(base).items():
        if options.only and axis not in options.only:
            continue
        points[axis] = []
        for value, workload in values.items():
            points[axis].append(measure(axis, value, workload, options.rounds))
            print(" ".join(points[axis][-1].cells()), flush=True)
    write(options.output, f"scaling_{options.device}", points)


def write(folder: Path, name: str, points: Mapping[str, Sequence[Point]]) -> None:
    """Print both tables, write JSON and Markdown."""
    rows = [point.cells() for of_axis in points.values() for point in of_axis]
    fits = [fit(axis, of_axis) for axis, of_axis in points.items()]
    text = ""
    for columns, lines in ((FITS, [shown(one) for one in fits]), (COLUMNS, rows)):
        screen = Table(*columns)
        for line in lines:
            screen.add_row(*line)
        Console(width=140).print(screen)
        text += f"{table(columns, lines)}\n"
    measured = [asdict(point) for of_axis in points.values() for point in of_axis]
    write_results(folder, name, {"fits": fits, "points": measured}, text, machine())


if __name__ == "__main__":
    main()
