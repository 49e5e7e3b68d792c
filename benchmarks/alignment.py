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
* `max_grad_norm` is ignored: none on our side.
* A sampled <pad> ends a row, and with <pad> = <eos> the last action is lost: they are apart, <pad> is never sampled.
* The score is paid one step after the stop token, except in the last column of the batch: score_position="after_eos".
  Where every row of a batch ends early, the last column is that of the longest row, and TRL pays this row otherwise
  than the rest though it ended itself. nearstep is told that width as its response_length for that update.
* 1e-7 is added to the temperature: ours is 1 + 1e-7.
* The learning rate moves once per update, linearly to 0; so does ours.
* Adam's epsilon is 1e-5 (2403.17031, detail 20). With 1e-8 a weight whose gradient is nothing but rounding takes whole
  steps into a random direction.

The control cannot fall to 1e-15: TRL's n/(n − 1) of the whitening, and Llama's norms, are float32 in both.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.parity.record.make import environment, run_module
from tests.parity.record.scenarios import SCENARIOS
from tests.parity.recordings import below, read
from tests.parity.replay import Step, networks, recipe_like, recorded_steps, replay
from torch import Tensor

from nearstep.training.recipe import Recipe

GOAL = 1e-5
CASES = tuple((scenario, dtype) for scenario in ("plain", "shaped") for dtype in ("float32", "float64"))
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


def follow(recording: dict[str, Tensor], scenario: str, updates: int) -> list[Gap]:
    """Play every recorded update through nearstep and measure how far it is from TRL."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_like(recording, SCENARIOS[f"{scenario}_long"], Path(folder))
        gaps = []
        for number in range(1, updates + 1):
            _, ours = replay(recording, number, recipe)
            gaps.append(measure(number, ours, recording, recipe))
    return gaps


def measure(number: int, ours: list[Step], recording: dict[str, Tensor], recipe: Recipe) -> Gap:
    """The differences after one update."""
    theirs = recorded_steps(recording, number)
    names = ("pg_loss", "abs_pg_loss", "vf_loss")
    mine, other = ({name: _mean(steps, name) for name in names} for steps in (ours, theirs))
    gaps = {name: abs(mine[name] - other[name]) for name in names}
    relative = {name: gaps[name] / abs(other[name]) for name in names}
    weights = {}
    for role, network in networks(recipe).items():
        now, start = (_flat(below(recording, f"{at}/weights/{role}/")) for at in (number, 0))
        gap = (_flat(network.state_dict()) - now).norm()
        weights |= {f"{role}_weights": float(gap / now.norm()), f"{role}_path": float(gap / (now - start).norm())}
    return Gap(number, pg_to_abs=gaps["pg_loss"] / other["abs_pg_loss"], **relative, **weights)


def _mean(steps: list[Step], name: str) -> float:
    return sum(vars(step)[name] for step in steps) / len(steps)


def _flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights) if name != PAD_BIAS])


def table(title: str, gaps: list[Gap]) -> Table:
    """One row per update."""
    shown = Table(*asdict(gaps[0]), title=title)
    for gap in gaps:
        number, *numbers = asdict(gap).values()
        shown.add_row(str(number), *(f"{value:.1e}" for value in numbers))
    return shown


def markdown(results: dict[str, list[Gap]]) -> str:
    """The same tables, and above them the largest value of every column."""
    parts = ["# nearstep and TRL 1.8.0 on the same rollouts\n", "Largest relative differences over all updates.\n"]
    columns = list(asdict(next(iter(results.values()))[0]))[1:]
    parts += [_row(["run", *columns]), _row(["---"] * (len(columns) + 1))]
    for name, gaps in results.items():
        parts.append(_row([name, *(f"{max(vars(gap)[column] for gap in gaps):.1e}" for column in columns)]))
    for name, gaps in results.items():
        parts += [f"\n## {name}\n", _row(["update", *columns]), _row(["---"] * (len(columns) + 1))]
        parts += [_row([str(gap.update), *(f"{vars(gap)[column]:.1e}" for column in columns)]) for gap in gaps]
    return "\n".join(parts) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(results: dict[str, list[Gap]], path: Path) -> None:
    """One panel per run, one line per quantity, the goal as a dashed line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    for panel, (name, gaps) in zip(panels, results.items(), strict=True):
        for column in ("pg_to_abs", "abs_pg_loss", "vf_loss", "policy_weights", "value_weights"):
            heights = [max(vars(gap)[column], 1e-17) for gap in gaps]
            panel.semilogy([gap.update for gap in gaps], heights, label=column)
        panel.axhline(GOAL, linestyle="--", color="black", linewidth=0.8)
        panel.set(title=name, xlabel="update", ylabel="relative difference to TRL")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Record TRL, follow it, print and write; exit code 1 where a difference is above the goal in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="folder of TRL's environment, outside the repository")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--rows", type=int, default=32, help="episodes of an update")
    parser.add_argument("--width", type=int, default=64, help="width of the models")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = environment(options.venv)
    results = {}
    for scenario, dtype in CASES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recording.npz"
            sizes = [f"--{name}={vars(options)[name]}" for name in ("updates", "rows", "width")]
            run_module(
                python, "tests.parity.record.ppo", f"--scenario={scenario}_long", f"--dtype={dtype}", *sizes,
                f"--output={file}",
            )  # fmt: skip
            gaps = follow(read(file), scenario, options.updates)
        results[f"{scenario}, {dtype}"] = gaps
        Console(width=140).print(table(f"{scenario}, {dtype}: relative differences to TRL", gaps))

    options.output.mkdir(parents=True, exist_ok=True)
    rows = {name: [asdict(gap) for gap in gaps] for name, gaps in results.items()}
    (options.output / "alignment.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "alignment.md").write_text(markdown(results))
    plot(results, options.output / "alignment.png")
    worst = max(gap.worst for name, gaps in results.items() if "float32" in name for gap in gaps)
    print(f"largest difference in float32: {worst:.1e}, goal {GOAL:.0e}")
    raise SystemExit(worst > GOAL)


if __name__ == "__main__":
    main()
