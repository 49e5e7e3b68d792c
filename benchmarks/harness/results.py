"""What measurements say: medians of each side, lines with a ratio and a bar, and the tables made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.harness.floor import Floor

MIB = 2**20


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
    update_to_floor: float | None = None


def lines_of(work: str, against: str, theirs: Side, ours: Side, bars: Bars, floor: Floor, tokens: int) -> list[Line]:
    """Everything that a row shows."""
    floors = {"generate": floor.generate, "score": floor.score, "update": floor.update}
    lines = [Line(work, "CPU seconds per update", against, theirs.total, ours.total, bars.time, floor.total)]
    for phase, least in floors.items():
        if phase in theirs.seconds and theirs.seconds[phase] != theirs.total:
            bar = bars.update if phase == "update" else None
            values = theirs.seconds[phase], ours.seconds[phase]
            lines.append(Line(work, f"  of it: {phase}", against, *values, bar, least or None))
    if bars.update_to_floor is not None:
        lines.append(update_line(work, ours, bars, floor))
    return [
        *lines,
        Line(work, "wall seconds per update", against, theirs.wall_seconds, ours.wall_seconds),
        Line(work, "peak MiB above the weights", against, theirs.memory_mib, ours.memory_mib, bars.memory),
        Line(work, "tokens per CPU second", against, tokens / theirs.total, tokens / ours.total),
    ]


def update_line(work: str, ours: Side, bars: Bars, floor: Floor) -> Line:
    """The update of nearstep beside the least time that its products take."""
    return Line(work, "update against its floor", "floor", floor.update, ours.seconds["update"], bars.update_to_floor)


def floor_lines(work: str, ours: Side, bars: Bars, floor: Floor) -> list[Line]:
    """Everything that a row shows which is run by nearstep alone."""
    phases = {"generate": floor.generate, "score": floor.score}
    others = [Line(work, f"{phase} against its floor", "floor", x, ours.seconds[phase]) for phase, x in phases.items()]
    return [*others, update_line(work, ours, bars, floor)]


def markdown(lines: Iterable[Line]) -> str:
    """A table of lines."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(line.cells() for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"
