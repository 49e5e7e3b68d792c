"""Which curves a run has, in three groups, what each means, where it is healthy, and what is drawn of long ones."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nearstep.reports.metrics import meaning
from nearstep.reports.run_folder import Line

POINTS = 600  # of a curve, at most
EVAL = "eval/"
OF_A_MEAN = ("_stderr", "_n", "_low", "_high")  # what says how sure a mean is; no line of its own
PLACE = ("update", "episode", "epoch", "not_finite")


@dataclass(frozen=True)
class Chart:
    """Metrics that are looked at together; a name that ends with * stands for every metric that begins so.

    `healthy` is the band in which the first of them lies in a healthy run, as a rule; None is an open end.
    """

    title: str
    names: tuple[str, ...]
    healthy: tuple[int | float | None, int | float | None] | None = None
    stacked: bool = False  # shares of one whole


GROUPS: dict[str, tuple[Chart, ...]] = {
    "Learning": (
        Chart("Reward", ("objective/rlhf_reward", "objective/scores")),
        Chart("Score spread", ("objective/scores_std",), (1e-3, None)),
        Chart("KL to the reference", ("objective/kl", "objective/kl_k3", "objective/kl_exact"), (0, None)),
        Chart("Response length", ("response/length_mean", "response/length_max")),
        Chart("Ended with a stop token", ("val/num_eos_tokens", "response/truncated"), (0.8, 1)),
        Chart("Entropy of the next token", ("policy/entropy_avg",), (0.05, None)),
        Chart("Explained variance", ("val/explained_variance",), (0, 1)),
        Chart("Parts of the reward", ("reward/*",)),
        Chart("Win rate", ("win_rate/*",), (0.5, 1)),
        Chart("Judged apart from training", ("judge/*",)),
    ),
    "Stability": (
        Chart("KL of the update", ("policy/approxkl_avg",), (0, 0.02)),
        Chart(
            "Clipped or masked",
            ("policy/clipfrac_avg", "policy/masked_positive", "policy/masked_negative"),
            (0.001, 0.5),
        ),
        Chart("Ratio", ("val/ratio", "val/ratio_clamped"), (0.9, 1.1)),
        Chart("Variance of the ratio", ("val/ratio_var",), (0, 0.1)),
        Chart("Mismatch before the first step", ("val/ratio_max_gap_first",)),
        Chart("Gradient norms", ("policy/grad_norm", "value/grad_norm")),
        Chart("Policy loss, absolute", ("loss/policy_abs",)),
        Chart("Value loss", ("loss/value_avg",)),
        Chart("Learning rates", ("lr", "vf_lr")),
    ),
    "Speed": (
        Chart("Where the time goes", ("time/*",), stacked=True),
        Chart("Tokens per second", ("tokens_per_second",)),
        Chart("Episodes per second", ("eps",)),
        Chart("Seconds an update", ("seconds",)),
    ),
}
# Where a metric that no chart names is drawn, by what stands before its slash.
OTHERS = {"policy": "Stability", "loss": "Stability", "val": "Stability", "value": "Stability",
          "optimizer": "Stability", "time": "Speed"}  # fmt: skip
REST = "Learning"


def curves(metrics: Sequence[Line], evaluations: Sequence[Line]) -> dict[str, Any]:
    """The groups of charts and the numbers of their lines, those of evaluations apart."""
    names, eval_names = _names(metrics), [name for name in _names(evaluations) if not name.endswith(OF_A_MEAN)]
    return {
        "groups": _groups(names, [name.removeprefix(EVAL) for name in eval_names]),
        "meanings": {name: meaning(name) for name in [*names, *eval_names]},
        "train": thinned(metrics, names),
        "eval": thinned(evaluations, eval_names),
    }


def thinned(lines: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
    """The columns of at most POINTS points; each is the mean of `each` lines, with lowest and highest beside it."""
    each = max(1, math.ceil(len(lines) / POINTS))
    parts = [lines[start : start + each] for start in range(0, len(lines), each)]
    columns = {name: [[line[name] for line in part if _is_number(line.get(name))] for part in parts] for name in names}
    return {
        "each": each,
        "lines": len(lines),
        "first": [part[0]["update"] for part in parts],
        "last": [part[-1]["update"] for part in parts],
        "episode": [part[-1].get("episode") for part in parts],
        "mean": {name: [_mean(numbers) for numbers in column] for name, column in columns.items()},
        **({} if each == 1 else {
            "low": {name: [rounded(min(numbers, default=None)) for numbers in column] for name, column in columns.items()},
            "high": {name: [rounded(max(numbers, default=None)) for numbers in column] for name, column in columns.items()},
        }),
    }  # fmt: skip


def rounded(number: int | float | None) -> int | float | None:
    """Five digits, which is more than a screen shows; None for what is not there or not finite."""
    if number is None or not math.isfinite(number):
        return None
    return number if isinstance(number, int) else float(f"{number:.5g}")


def _mean(numbers: Sequence[int | float]) -> int | float | None:
    return rounded(sum(numbers) / len(numbers)) if numbers else None


def _groups(names: Iterable[str], eval_names: Iterable[str]) -> list[dict[str, Any]]:
    """The charts that have something to draw; a metric that no chart names has one of its own, under `more`."""
    left = dict.fromkeys([*names, *eval_names])
    groups = []
    for title, charts in GROUPS.items():
        drawn = []
        for chart in charts:
            if lines := [name for wanted in chart.names for name in _matching(wanted, left)]:
                left = {name: None for name in left if name not in lines}
                drawn.append(_drawn(chart, lines))
        groups.append({"title": title, "charts": drawn, "more": []})
    by_title = {group["title"]: group for group in groups}
    for name in left:
        by_title[OTHERS.get(name.partition("/")[0], REST)]["more"].append(_drawn(Chart(name, (name,)), [name]))
    return groups


def _matching(wanted: str, names: Iterable[str]) -> list[str]:
    """The metrics that a chart means; not the spread, shares and failures of reward parts, which have other units."""
    if not wanted.endswith("*"):
        return [name for name in names if name == wanted]
    return [name for name in names
            if name.startswith(wanted[:-1]) and not name.endswith(("_std", "_stderr", "_none", "_failed"))]  # fmt: skip


def _drawn(chart: Chart, lines: list[str]) -> dict[str, Any]:
    healthy = chart.healthy if lines[0] == chart.names[0] else None
    return {"title": chart.title, "names": lines, "healthy": healthy, "stacked": chart.stacked}


def _names(lines: Sequence[Line]) -> list[str]:
    names = {name: None for line in lines for name, value in line.items() if _is_number(value)}
    return [name for name in names if name not in PLACE]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
