"""The picture of a comparison: seconds by phase, and memory, side by side."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness.floor import Floor
from benchmarks.harness.meter import PHASES
from benchmarks.harness.results import Side

COLOURS = {"generate": "#4477aa", "score": "#ccbb44", "update": "#ee6677", "other": "#bbbbbb"}


def plot(rows: Mapping[str, tuple[Side, Side, Floor]], path: Path) -> None:
    """Two bars for each row, the other system's and nearstep's; the floor is a black mark on nearstep's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 1.2 + 0.7 * len(rows)), layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    longest = max(side.total for theirs, ours, _ in rows.values() for side in (theirs, ours))
    for place, (theirs, ours, floor) in enumerate(rows.values()):
        for side, offset in ((theirs, -0.2), (ours, 0.2)):
            left = 0.0
            for phase in PHASES:
                spent = side.seconds.get(phase, 0.0)
                seconds.barh(place + offset, spent, 0.36, left, color=COLOURS[phase])
                left += spent
            memory.barh(place + offset, side.memory_mib, 0.36, color="#777777" if side is theirs else "#228833")
        seconds.plot([floor.total] * 2, [place + 0.02, place + 0.38], color="black")
    for phase in PHASES[:3]:
        seconds.barh(0, 0, color=COLOURS[phase], label=phase)
    seconds.plot([], [], color="black", label="floor")
    seconds.legend()
    seconds.set_yticks(range(len(rows)), list(rows))
    seconds.invert_yaxis()
    seconds.set(xlim=(0, 1.05 * longest), xlabel="CPU seconds per update (above: the other, below: nearstep)")
    memory.set(xlabel="peak MiB above the weights")
    figure.savefig(path, dpi=100)
