"""What measurements say: medians of each side, lines with a ratio and a bar, tables, and the files of results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.floor import Floor
from benchmarks.harness.machine import REPOSITORY, sentence

MIB = 2**20
RESULTS = REPOSITORY / "benchmarks" / "results"


def write_results(
    folder: Path,
    name: str,
    record: Mapping[str, object],
    page: str,
    facts: Mapping[str, object],
    indent: int | None = 1,
) -> None:
    """NAME.json and NAME.md in a folder; both say by `facts` what was measured where (`harness.machine`)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": facts, **record}, indent=indent)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(f"{page.rstrip()}\n\n{sentence(facts)}\n", encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass(frozen=True)
class Side:
    """Medians of one system on one workload, over all its processes."""

    seconds: Mapping[str, float]  # by phase; of the CPU, or on a GPU of the wall clock
    wall_seconds: float
    memory_mib: float  # highest use above what was loaded

    @property
    def total(self) -> float:
        """Seconds of an update."""
        return sum(self.seconds.values())


def side_of(records: Sequence[Mapping[str, Any]], clock: str = "cpu_seconds") -> Side:
    """The medians over the updates of some processes; of several updates of a process the first is a warm-up."""
    updates = [update for record in records for update in record["updates"][len(record["updates"]) > 1 :]]
    phases = {phase: median(update[phase][clock] for update in updates) for phase in updates[0]}
    wall = median(sum(spent["wall_seconds"] for spent in update.values()) for update in updates)
    peaks = [_peak(record) for record in records]
    return Side(phases, wall, median(peaks) / MIB)


def _peak(record: Mapping[str, Any]) -> int:
    """Bytes above the loaded models, over all updates of a process."""
    highest = max(spent["peak_bytes"] for update in record["updates"] for spent in update.values())
    return int(highest) - int(record["weights_bytes"])


@dataclass(frozen=True)
class Line:
    """One number of both sides. `against` says what the other side is; `bar` is the largest ratio that is wanted."""

    work: str
    measure: str
    against: str
    theirs: float
    ours: float
    bar: float | None = None
    floor: float | None = None  # least seconds

    @property
    def ratio(self) -> float:
        """nearstep's share of the other's."""
        return self.ours / self.theirs

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        return None if self.bar is None else self.ratio <= self.bar

    def cells(self) -> list[str]:
        """The line as text."""
        times_floor = ["", ""] if self.floor is None else [f"{x / self.floor:.1f}" for x in (self.theirs, self.ours)]
        bar = "" if self.bar is None else f"{self.bar:.2f}"
        verdict = {None: "", True: "yes", False: "NO"}[self.holds]
        numbers = [shown(self.theirs), shown(self.ours), f"{self.ratio:.3f}"]
        return [self.work, self.measure, self.against, *numbers, bar, verdict, *times_floor]


COLUMNS = ["work", "measure", "against", "its", "nearstep's", "ratio", "bar", "holds", "its ÷ floor", "ours ÷ floor"]


def shown(number: float) -> str:
    """Three or four digits are enough."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2f}"


@dataclass(frozen=True)
class Bars:
    """The largest ratios that are wanted of a row; None where none is set."""

    time: float | None = None
    memory: float | None = None
    update: float | None = None


def lines_of(work: str, against: str, theirs: Side, ours: Side, bars: Bars, floor: Floor, tokens: int) -> list[Line]:
    """Everything that a row shows."""
    floors = {"generate": floor.generate, "score": floor.score, "update": floor.update}
    lines = [Line(work, "CPU seconds per update", against, theirs.total, ours.total, bars.time, floor.total)]
    for phase, least in floors.items():
        if phase in theirs.seconds and theirs.seconds[phase] != theirs.total:
            bar = bars.update if phase == "update" else None
            values = theirs.seconds[phase], ours.seconds[phase]
            lines.append(Line(work, f"  of it: {phase}", against, *values, bar, least or None))
    return [
        *lines,
        Line(work, "wall seconds per update", against, theirs.wall_seconds, ours.wall_seconds),
        Line(work, "peak MiB above the weights", against, theirs.memory_mib, ours.memory_mib, bars.memory),
        Line(work, "tokens per CPU second", against, tokens / theirs.total, tokens / ours.total),
    ]


def floor_lines(work: str, ours: Side, floor: Floor) -> list[Line]:
    """Everything that a row shows which is run by nearstep alone: each phase beside the least time of its products."""
    phases = {"generate": floor.generate, "score": floor.score, "update": floor.update}
    there = {phase: least for phase, least in phases.items() if least and phase in ours.seconds}
    return [Line(work, f"{phase} against its floor", "floor", x, ours.seconds[phase]) for phase, x in there.items()]


def markdown(lines: Iterable[Line]) -> str:
    """A table of lines."""
    return table(COLUMNS, [line.cells() for line in lines])
