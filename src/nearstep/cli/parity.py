"""`nearstep parity`: engine against trainer on a model's own weights. What the command prints, and its exit code."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nearstep.cli.generate import absent_models
from nearstep.cli.places import absent_places
from nearstep.cli.ppo import stay_offline_if_hub_is_silent
from nearstep.config.parity import ParityOptions
from nearstep.config.settings import Problem

if TYPE_CHECKING:
    from nearstep.evaluation.parity import ParityLine

UNFIT = 3  # the exit code where an engine is wrong, or could not be compared
ORDER = ("equal", "fits", "watch", "refused", "wrong")
NOTE = (
    f"Exit code: 0 where every engine may be trained with (equal, fits, watch), {UNFIT} where one is wrong or could "
    "not be compared, 1 or 2 where nothing could be said. docs/engines.md says what the figures and verdicts mean."
)
HEAD = ("engine", "dtype", "rows", "tokens", "mean KL", "worst row", "far", "largest gap", "greedy differs", "verdict")


def parity_problems(options: ParityOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    if options.model_name_or_path is None:
        yield Problem("model_name_or_path is missing: the policy that engines sample from", ("model_name_or_path",))
    yield from absent_models({"model_name_or_path": options.model_name_or_path, "base_model": options.base_model})
    yield from absent_places({"dataset_name": options.dataset_name})


def run_parity(options: ParityOptions) -> int:
    """Compare, print what was found, and give the exit code."""
    stay_offline_if_hub_is_silent([place for place in (options.model_name_or_path, options.dataset_name) if place])
    from nearstep.evaluation.parity import parity

    lines = list(parity(options))
    print(json.dumps(parity_record(lines), indent=2) if options.json else parity_text(lines))
    return UNFIT if worst_of(lines) in ("refused", "wrong") else 0


def worst_of(lines: "Sequence[ParityLine]") -> str:
    """The verdict on all lines: the worst of theirs."""
    return max((line.verdict for line in lines), key=ORDER.index)


def parity_record(lines: "Sequence[ParityLine]") -> dict[str, object]:
    """The lines as JSON."""
    return {"verdict": worst_of(lines), "lines": [asdict(line) for line in lines]}


def parity_text(lines: "Sequence[ParityLine]") -> str:
    """The table, and below it what every verdict means, or why an engine was not compared."""
    cells = [HEAD, *map(_cells, lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    notes = dict.fromkeys(
        f"{line.verdict}: {line.engine}: {line.note}" if line.figures is None else f"{line.verdict}: {line.note}"
        for line in lines
    )
    return "\n".join([*table, "", *notes])


def _cells(line: "ParityLine") -> tuple[str, ...]:
    named = (line.engine, line.dtype, str(line.batch_size))
    found = line.figures
    if found is None:
        return (*named, *["–"] * 6, line.verdict)
    return (
        *named,
        str(found.tokens),
        f"{found.kl:.2g}",
        f"{found.kl_worst_row:.2g}",
        f"{found.share_far:.2%}",
        f"{found.probability_gap:.2g}",
        f"{found.greedy_differs:.2%}",
        line.verdict,
    )
