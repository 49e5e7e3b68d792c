"""How closely nearstep follows TRL 1.8.0: the same rollouts through both, update by update.

    python -m benchmarks.alignment --venv /tmp/trl

TRL's PPOTrainer runs in an environment of its own (made if the folder is not there; needs a package index) and is
recorded by `tests/parity/record/ppo.py`. nearstep starts from the same weights and is given TRL's rollouts: tokens,
log-probs, scores. From there each goes its own way; nothing is set back in between, so differences add up.

Two scenarios: `plain` has TRL's defaults and AdamW, `shaped` has k3, whitened rewards, γ < 1, a penalty for rows that
do not end, other clip ranges, and SGD. Each runs in float32, and in float64 as a control: what is rounding must shrink.

What TRL does otherwise, and how both are set up so that it does not matter here:

* `num_mini_batches` and gradient accumulation do not add up to the intended steps: one minibatch, no accumulation. Then
  a mean over a micro-batch is a mean over the batch, too, and the order of rows changes rounding only.
* `max_grad_norm` is ignored by PPOTrainer: none on our side.
* A sampled <pad> ends a row, and with <pad> = <eos> the last action is lost: they are apart, <pad> is never sampled.
* The score is paid one step after the stop token, except in the last column of the batch: score_position="after_eos".
  Where every row of a batch ends early, the last column is that of the longest row, and TRL pays this row otherwise
  than the rest though it ended itself. nearstep is told that width as its response_length for that update.
* 1e-7 is added to the temperature: ours is 1 + 1e-7.
* The learning rate moves once per update, linearly to 0; so does ours.
* Adam's epsilon is 1e-5 (2403.17031, detail 20). With 1e-8 a weight whose gradient is nothing but rounding takes whole
  steps into a random direction.

Divergence PPO is followed in the same way: TRL's DPPOTrainer with each of its four divergences, AdamW, 4 steps per
rollout, groups of 8. nearstep is given TRL's advantages, and trains the policy alone. TRL divides the loss by the
tokens of the whole generation batch: that is one step's batch here. It counts positions from the left padding on, which
turns rotary angles into other float32 numbers: all prompts are of one length here.

How far rounding grows depends on the steps: with a learning rate of 1e-3 instead of 3e-4 the float32 runs of Divergence
PPO end at 1.4e-5, while their float64 controls stay below 1e-8. The controls of PPO cannot fall as low: TRL's n/(n − 1)
of the whitening is float32 always.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from tests.parity.record.make import environment, run_module
from tests.parity.record.scenarios import SCENARIOS
from tests.parity.recordings import below, read
from tests.parity.replay import Step, networks, recipe_like, recorded_steps, replay
from tests.parity.replay_dppo import recipe_for, recorded_region_steps, replay_region
from torch import Tensor, nn

from benchmarks.harness.machine import at_least_one, machine
from benchmarks.harness.results import RESULTS, write_results
from nearstep.training.recipe import Recipe

GOAL = 1e-5
SCENARIO_NAMES, DTYPES = ("plain", "shaped"), ("float32", "float64")
DIVERGENCES = ("binary_tv", "binary_kl", "topk_tv", "topk_kl")
PAD_BIAS = "lm_head.bias"  # holds the -10,000 that keep <pad> out, and would flatter every norm


@dataclass(frozen=True)
class Gap:
    """Relative differences after an update. Losses are means over its epochs.

    `pg_loss` is relative to itself: a mean of whitened numbers that nearly cancel, so its last digits are rounding.
    `pg_to_abs` is the same difference relative to abs_pg_loss. Weights are relative to their norm, paths to the
    distance that the weights have moved since the start.
    """

    update: int
    pg_loss: float
    pg_to_abs: float
    abs_pg_loss: float
    vf_loss: float
    policy_weights: float
    value_weights: float
    policy_path: float
    value_path: float

    @property
    def worst(self) -> float:
        """The largest difference that has a scale of its own."""
        return max(self.pg_to_abs, self.abs_pg_loss, self.vf_loss, self.policy_weights, self.value_weights)


@dataclass(frozen=True)
class RegionGap:
    """The same for Divergence PPO. `loss_to_abs` is relative to the mean of |A·r·log π|; `dropped` is the largest
    difference between the shares of tokens without gradient, 0 up to rounding if all masks agree."""

    update: int
    loss_to_abs: float
    dropped: float
    policy_weights: float
    policy_path: float

    @property
    def worst(self) -> float:
        """The largest difference that has a scale of its own."""
        return max(self.loss_to_abs, self.dropped, self.policy_weights)


Gaps: TypeAlias = Sequence[Gap | RegionGap]


def follow(recording: dict[str, Tensor], scenario: str, updates: int) -> list[Gap]:
    """Play every recorded update through nearstep and measure how far it is from TRL."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_like(recording, SCENARIOS[f"{scenario}_long"], Path(folder))
        gaps = []
        for number in range(1, updates + 1):
            _, ours = replay(recording, number, recipe)
            gaps.append(measure(number, ours, recording, recipe))
    return gaps


def follow_region(recording: dict[str, Tensor], divergence: str, updates: int) -> list[RegionGap]:
    """The same for a run of Divergence PPO."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(recording, divergence, Path(folder))
        gaps = []
        for number in range(1, updates + 1):
            pairs = list(
                zip(replay_region(recording, number, recipe), recorded_region_steps(recording, number), strict=True)
            )
            loss = max(abs(ours.loss - trl.loss) / max(ours.scale, 1e-12) for ours, trl in pairs)
            dropped = max(abs(ours.dropped - trl.dropped) for ours, trl in pairs)
            weights = weight_gaps(recording, number, "policy", recipe.models.policy.model)
            gaps.append(RegionGap(number, loss, dropped, **weights))
    return gaps


def measure(number: int, ours: list[Step], recording: dict[str, Tensor], recipe: Recipe) -> Gap:
    """The differences after one update."""
    theirs = recorded_steps(recording, number)
    names = ("pg_loss", "abs_pg_loss", "vf_loss")
    mine, other = ({name: _mean(steps, name) for name in names} for steps in (ours, theirs))
    gaps = {name: abs(mine[name] - other[name]) for name in names}
    relative = {name: gaps[name] / abs(other[name]) for name in names}
    weights: dict[str, float] = {}
    for role, network in networks(recipe).items():
        weights |= weight_gaps(recording, number, role, network)
    return Gap(number, pg_to_abs=gaps["pg_loss"] / other["abs_pg_loss"], **relative, **weights)


def weight_gaps(recording: dict[str, Tensor], number: int, role: str, network: nn.Module) -> dict[str, float]:
    """How far the weights are from TRL's, relative to their norm and to the distance moved since the start."""
    now, start = (_flat(below(recording, f"{at}/weights/{role}/")) for at in (number, 0))
    gap = (_flat(network.state_dict()) - now).norm()
    return {f"{role}_weights": float(gap / now.norm()), f"{role}_path": float(gap / (now - start).norm())}


def _mean(steps: list[Step], name: str) -> float:
    return sum(vars(step)[name] for step in steps) / len(steps)


def _flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights) if name != PAD_BIAS])


def table(title: str, gaps: Gaps) -> Table:
    """One row per update."""
    shown = Table(*columns(gaps), title=f"{title}: relative differences to TRL")
    for gap in gaps:
        shown.add_row(*cells(gap))
    return shown


def columns(gaps: Gaps) -> list[str]:
    """What was measured."""
    return list(asdict(gaps[0]))


def cells(gap: Gap | RegionGap) -> list[str]:
    """A row of numbers as text."""
    number, *numbers = asdict(gap).values()
    return [str(number), *(f"{value:.1e}" for value in numbers)]


def markdown(results: dict[str, Gaps]) -> str:
    """Per kind of run the largest value of every column, then the tables of all runs."""
    parts = ["# nearstep and TRL 1.8.0 on the same rollouts\n", "Largest relative differences over all updates.\n"]
    for kind in (Gap, RegionGap):
        runs = {name: gaps for name, gaps in results.items() if isinstance(gaps[0], kind)}
        _, *measured = columns(next(iter(runs.values())))
        parts += [_row(["run", *measured]), _row(["---"] * (len(measured) + 1))]
        for name, gaps in runs.items():
            parts.append(_row([name, *(f"{max(vars(gap)[column] for gap in gaps):.1e}" for column in measured)]))
        parts.append("")
    for name, gaps in results.items():
        parts += [f"## {name}\n", _row(columns(gaps)), _row(["---"] * len(columns(gaps)))]
        parts += [*(_row(cells(gap)) for gap in gaps), ""]
    return "\n".join(parts)


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def plot(results: dict[str, Gaps], path: Path) -> None:
    """One panel per run, one line per quantity, the goal as a dashed line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 10), layout="constrained")
    panels = figure.subplots(3, len(results) // 3, sharex=True, sharey=True).flatten()
    for panel, (name, gaps) in zip(panels, results.items(), strict=True):
        for column in columns(gaps)[1:]:
            if column == "pg_loss" or column.endswith("_path"):
                continue  # in the table
            heights = [vars(gap)[column] or float("nan") for gap in gaps]  # no logarithm of an exact 0
            panel.semilogy([gap.update for gap in gaps], heights, marker=".", label=column)
        panel.axhline(GOAL, linestyle="--", color="black", linewidth=0.8)
        panel.set(title=name, xlabel="update", ylabel="relative difference to TRL")
    for panel in (panels[0], panels[-1]):
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def record(python: Path, module: str, *arguments: str) -> dict[str, Tensor]:
    """Run TRL and read what was recorded."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recording.npz"
        run_module(python, f"tests.parity.record.{module}", *arguments, f"--output={file}")
        return read(file)


def main(words: Sequence[str] | None = None) -> None:
    """Record TRL, follow it, print and write; exit code 1 where a difference is above the goal in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="folder of TRL's environment, outside the repository")
    parser.add_argument("--updates", type=at_least_one, default=24)
    parser.add_argument("--rows", type=at_least_one, default=32, help="episodes of an update")
    parser.add_argument("--width", type=at_least_one, default=64, help="width of the models")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    python, updates = environment(options.venv), options.updates
    sizes = [f"--{name}={vars(options)[name]}" for name in ("updates", "rows", "width")]
    results: dict[str, Gaps] = {}
    for scenario, dtype in product(SCENARIO_NAMES, DTYPES):
        recording = record(python, "ppo", f"--scenario={scenario}_long", f"--dtype={dtype}", *sizes)
        results[f"PPO {scenario}, {dtype}"] = follow(recording, scenario, updates)
    for dtype, divergence in product(DTYPES, DIVERGENCES):
        recording = record(python, "dppo_run", f"--divergence={divergence}", f"--dtype={dtype}", *sizes)
        results[f"DPPO {divergence}, {dtype}"] = follow_region(recording, divergence, updates)
    for name, gaps in results.items():
        Console(width=140).print(table(name, gaps))

    rows = {name: [asdict(gap) for gap in gaps] for name, gaps in results.items()}
    write_results(options.output, "alignment", {"runs": rows}, markdown(results), machine())
    plot(results, options.output / "alignment.png")
    worst = max(gap.worst for name, gaps in results.items() if "float32" in name for gap in gaps)
    print(f"largest difference in float32: {worst:.1e}, goal {GOAL:.0e}")
    raise SystemExit(worst > GOAL)


if __name__ == "__main__":
    main()
