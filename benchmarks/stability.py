"""Which trust regions stay stable when the engine is not quite the trainer: the sanity test of Divergence PPO, small.

    make stability        # or: python -m benchmarks.stability [--quick]

The paper (2602.04879) trains on questions that a model can solve, so that the training reward ought to reach 1, and
looks at which methods get there and stay. Here a small Llama (2 layers, 64 wide) sorts 8 letters. It learned that from
teachers who slip at 15 % of the letters, and slips as they do: about a fourth of its answers is right, the rest fails
by tokens of small probability that must be unlearned, and reward 1 is possible. Everything is made on the spot.

As in the paper: 8 responses to a prompt, group-mean advantages without standard deviation, no KL penalty, 4 optimizer
steps on each rollout, token-mean loss. What is made hard is how far the engine is from the trainer (`REGIMES`):

* `exact`: it is the trainer, as a control;
* `stale`: it plays the weights of 8 updates ago, as an asynchronous engine does;
* `rounded`: its matrices are rounded to 8 bits (float8 e5m2, scaled by rows), as a fast engine's are.

The engine is a wrapper of the built-in one (`benchmarks/drift/engine.py`) and records what it sampled from. Beside the
reward stands the mismatch: mean |π − μ| of the sampled tokens and KL(μ ‖ π) by k3, trainer against engine, before each
update. Every method has the same seeds, starts, prompts and learning rate. Three seeds on a small task are no proof for
large models; they show whether the mechanism is there.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.drift.play import Moment, Regime, play
from benchmarks.drift.report import Claim, Run, facts, plot, rows, table
from benchmarks.drift.task import beginner
from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import RESULTS, write_results
from nearstep.config.axes import CORRECTIONS

NO_LIMIT = 1e6  # of an importance weight

# What the paper compares, with its thresholds. "recomputed" is a trainer that does not ask the engine for log-probs.
# TIS caps π_old/μ here, as those who proposed it do; the paper's code caps π/μ.
METHODS: Mapping[str, Mapping[str, object]] = {
    "PG-IS": {"trust_region": "unbounded"},
    "CISPO": {"trust_region": "unbounded", "ratio_cap": 3.0},
    "clip": {},
    "clip-higher": {"cliprange_high": 0.28},
    "recomputed": {"cliprange_high": 0.28, "anchor": "recomputed"},
    "MiniRL": {"cliprange_high": 0.28, "anchor": "recomputed", "correction_high": NO_LIMIT},
    "MiniRL-TIS": {"cliprange_high": 0.28, "anchor": "recomputed", "correction_high": 3.0},
    "binary TV": {"trust_region": "binary_tv"},
    "binary KL": {"trust_region": "binary_kl"},
    "top-K TV": {"trust_region": "topk_tv"},
    "top-K KL": {"trust_region": "topk_kl"},
}
# Schemes that correct for the engine, each on the clip and on log-probs computed anew (`--correction`).
SCHEMES = tuple(name for name in CORRECTIONS if name not in ("auto", "none"))
DIVERGENCES = ("binary TV", "binary KL", "top-K TV", "top-K KL")

REGIMES: Mapping[str, Regime] = {
    "exact": Regime(),
    "stale": Regime(stale_by=8),
    "rounded": Regime(precision=torch.float8_e5m2),
}
SEEDS = (0, 1, 2)

CLAIMS = (
    Claim("PG-IS and CISPO, without a trust region, collapse", ("PG-IS", "CISPO"), collapses=True),
    Claim("MiniRL, anchored on log-probs computed anew, collapses, with TIS as well", ("MiniRL", "MiniRL-TIS"), True),
    Claim("divergence regions hold", DIVERGENCES, collapses=False),
)


def corrected(schemes: Sequence[str]) -> Mapping[str, Mapping[str, object]]:
    """Methods that differ in anchor and correction alone: none, each scheme, and interpolated anchors."""
    anew, between = METHODS["recomputed"], {**METHODS["clip-higher"], "anchor": "interpolated"}
    with_schemes = {f"recomputed, {scheme}": {**anew, "correction": scheme} for scheme in schemes}
    return {
        "sampled": METHODS["clip-higher"],
        "recomputed": anew,
        **with_schemes,
        "interpolated": between,
        "interpolated, tis": {**between, "correction": "tis"},
    }


def runs(
    regimes: Mapping[str, Regime], seeds: Sequence[int], methods: Mapping[str, Mapping[str, object]] = METHODS
) -> Iterator[Run]:
    """Every method with every seed in every regime; the methods of one seed start from the same weights."""
    for seed in seeds:
        starts: dict[tuple[int, int, float], nn.Module] = {}
        for name, regime in regimes.items():
            kind = (regime.length, regime.supervised_steps, regime.slips)
            if kind not in starts:
                starts[kind] = beginner(*kind, seed=seed)
            for method, settings in methods.items():
                moments = play(regime, settings, starts[kind], seed)
                yield Run(name, method, seed, regime.updates, tuple(moments))


def quick(regime: Regime) -> Regime:
    """The same in a few updates, only to see that all parts work."""
    return replace(regime, updates=6, length=3, supervised_steps=150, stale_by=min(regime.stale_by, 2))


def page(found: Sequence[Run], regimes: Mapping[str, Regime], seconds: float) -> str:
    """The results in Markdown: a table and a paragraph of facts for each regime."""
    made = f"By `make stability`: {seconds / 60:.0f} minutes of one processor core."
    if any(regime != REGIMES[name] for name, regime in regimes.items()):
        made += " A quick run, whose numbers prove nothing."
    parts = ["# Stability with an engine that is not quite the trainer", f"{made} {ABOUT}", CHOICE]
    for name, regime in regimes.items():
        of_regime = rows([run for run in found if run.regime == name])
        parts += [
            f"## {name}: {regime.drift or 'the engine is the trainer'}",
            f"Learning rate {regime.learning_rate:g}, {regime.updates} updates of {regime.batch_size} responses with "
            f"{regime.num_mini_batches} optimizer steps each.",
            table(of_regime),
            facts(of_regime, CLAIMS if regime.drift and {run.method for run in found} == set(METHODS) else ()),
        ]
    return "\n\n".join(parts) + "\n"


ABOUT = (
    "Reward at the end is the mean over the last fifth of the updates, best the highest mean of as many updates in a "
    "row; ± is half the distance between the best and the worst seed. A run has collapsed where it ends below the mean "
    "of its first fifth. π is the trainer's probability of a sampled token, μ the engine's, both before the update."
)


# What was seen before the regimes were fixed, so that nobody takes them for the only ones.
CHOICE = (
    "How the regimes were chosen, with one seed and 60 to 80 updates, by the mean reward of the last ten: without "
    "drift PG-IS, clip and binary TV rise alike at a learning rate of 3e-4 (0.81, 0.82, 0.84, batches of 256) and part "
    "at 1e-3 (0.44, 0.67, 0.61). With the engine 4 updates behind they still rise at 3e-4 (0.67, 0.73, 0.78); at 1e-3 "
    "none of eight methods ends above 0.32. Matrices in float8 e4m3 hardly tell five methods apart at 6e-4 (0.50 to "
    "0.65, batches of 128). After a supervised start without slips the reward hardly rose at 1e-4 or less, and fell at "
    "1e-3, with any method."
)


def main(words: Sequence[str] | None = None) -> None:
    """Play everything, print the tables, and write json, md and png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a few updates, to see that all parts work; proves nothing"
    )
    parser.add_argument("--output", type=Path, help="benchmarks/results, or runs/stability with --quick")
    parser.add_argument("--report_only", action="store_true", help="write md and png again from the json of a run")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--correction", nargs="+", choices=SCHEMES, help="compare corrections and anchors, in runs/corrections"
    )
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    regimes = {name: quick(REGIMES[name]) if options.quick else REGIMES[name] for name in options.regimes}
    methods = corrected(options.correction) if options.correction else METHODS
    scratch = REPOSITORY / "runs" / ("corrections" if options.correction else "stability")
    folder = options.output or (scratch if options.quick or options.correction else RESULTS)
    file = folder / "stability.json"
    if options.report_only:
        if not file.exists():
            parser.error(f"--report_only: there is no {file}")
        seconds, found, facts = read(file)
    else:
        seconds, found = follow(runs(regimes, options.seeds, methods))
        facts = machine()
    played = {run.regime for run in found}
    text = page(found, {name: regime for name, regime in regimes.items() if name in played}, seconds)
    print(text)
    kept = {"seconds": seconds, "runs": [packed(run) for run in found]}
    write_results(folder, "stability", kept, text, facts, indent=None)
    plot(found, folder / "stability.png")


def follow(played: Iterator[Run]) -> tuple[float, list[Run]]:
    """All runs, told one by one, and the seconds of processor time that they took."""
    console, began, found = Console(width=140), time.process_time(), []
    for run in played:
        found.append(run)
        console.print(
            f"{(time.process_time() - began) / 60:5.1f} min  {run.regime}, seed {run.seed}, {run.method:<11} "
            f"{len(run.moments)} updates, reward at the end {run.final:.2f}, best {run.best:.2f}"
            f"{', collapsed' if run.collapsed else ''}",
            highlight=False,
        )
    return time.process_time() - began, found


def packed(run: Run) -> dict[str, object]:
    """A run for the json: a list for each quantity, with five digits."""
    columns = {field.name: [] for field in fields(Moment)}
    for moment in run.moments:
        for name, number in asdict(moment).items():
            columns[name].append(float(f"{number:.5g}"))
    return {**vars(run), "moments": columns}


def unpacked(kept: Mapping[str, Any]) -> Run:
    """The inverse, up to the digits."""
    moments = zip(*(kept["moments"][field.name] for field in fields(Moment)), strict=True)
    return Run(**{**kept, "moments": tuple(Moment(*numbers) for numbers in moments)})


def read(file: Path) -> tuple[float, list[Run], dict[str, object]]:
    """Seconds, runs and what they were measured with, as they were written; older files do not say with what."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept["seconds"], [unpacked(run) for run in kept["runs"]], kept.get("machine", {"commit": "not recorded"})


if __name__ == "__main__":
    main()
