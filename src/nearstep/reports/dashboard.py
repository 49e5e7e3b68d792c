"""The live part of the screen: where the run is, what goes on, a few numbers with their history, the last alert."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console, ConsoleOptions
from rich.text import Text

from nearstep.reports.fitting import flowing
from nearstep.reports.metrics import Numbers

HEADLINE = {
    "objective/rlhf_reward": "reward",
    "objective/scores": "score",
    "objective/kl": "kl",
    "response/length_mean": "length",
}
# The phases of an update in their order, and what the screen says while one goes on.
PHASES = {"generate": "generating", "score": "scoring", "experience": "crediting", "update": "updating"}
OTHER_PHASES = {"evaluate": "evaluating", "save": "saving"}
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 12  # characters of a sparkline
BAR_WIDTH = 24
HISTORY = 4096  # logged updates of which the sparklines are made


@dataclass
class Dashboard:
    """What is shown, drawn anew at every refresh for the width that the terminal has then."""

    total_updates: int
    clock: Callable[[], int | float]
    plain: Callable[[str], Text]  # text that can harm nothing
    update: int = 0  # the last that is done
    completed: int | float = 0.0  # updates, the share of the current one in it
    phase: str = ""
    time_left: str = ""
    place: str = ""  # episodes and epoch
    evaluation: Sequence[str] = ()
    alert: str = ""
    began: int | float | None = None
    history: dict[str, deque[int | float]] = field(default_factory=dict)

    def add(self, numbers: Numbers) -> None:
        """Take the numbers of a logged update into the history."""
        for name in HEADLINE:
            if name in numbers:
                self.history.setdefault(name, deque(maxlen=HISTORY)).append(numbers[name])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        marks = not options.ascii_only
        seconds = 0.0 if self.began is None else self.clock() - self.began
        head = [f"update {self.update}/{self.total_updates}", self._bar(marks), self.phase, clock_time(seconds)]
        lines = [[*head, self.time_left, self.place], list(self._numbers(marks)), self.evaluation, [self.alert]]
        for pieces in lines:
            yield from flowing([self.plain(piece) for piece in pieces if piece], options.max_width)

    def _bar(self, marks: bool) -> str:
        done = round(BAR_WIDTH * min(1.0, self.completed / max(1, self.total_updates)))
        return ("━" if marks else "#") * done + ("─" if marks else "-") * (BAR_WIDTH - done)

    def _numbers(self, marks: bool) -> Sequence[str]:
        return [
            " ".join(filter(None, (HEADLINE[name], short(values[-1]), sparkline(list(values)) if marks else "")))
            for name, values in self.history.items()
        ]


def sparkline(values: Sequence[int | float], width: int = SPARKS) -> str:
    """The course of numbers in `width` blocks, from the lowest to the highest of them; a gap where none is finite.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    count = min(width, len(values))
    cuts = [len(values) * place // count for place in range(count + 1)] if count else [0]
    parts = [values[start:end] for start, end in pairwise(cuts)]
    means = [_mean([value for value in part if abs(value) < float("inf")]) for part in parts]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(BLOCKS) - 1
    places = [None if mean is None else round(top * (mean - low) / span) if span > 0 else 0 for mean in means]
    return "".join(" " if place is None else BLOCKS[place] for place in places)


def _mean(values: Sequence[int | float]) -> float | None:
    return sum(values) / len(values) if values else None


def headline_text(numbers: Numbers) -> str:
    """The few numbers to watch: reward, score, KL, length; those that are there."""
    return "  ".join(f"{label} {short(numbers[name])}" for name, label in HEADLINE.items() if name in numbers)


def short(number: int | float) -> str:
    """Two decimals, or two digits where these would show nothing."""
    return f"{number:.2f}" if number == 0 or 0.01 <= abs(number) < 1e6 else f"{number:.2g}"


def clock_time(seconds: int | float) -> str:
    """Seconds as `1:05:00`."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}"
