"""What the user sees of a run: batch arithmetic, a bar with the reward on it, sample completions, where files lie.

One plain line per logged update, and on a terminal a live bar under them that names the phase. Text of models and
data sets never reaches rich as markup, and its control characters never reach the terminal.
"""

import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nearstep.reports.metrics import Numbers

HEADLINE = {
    "objective/rlhf_reward": "reward",
    "objective/scores": "score",
    "objective/kl": "kl",
    "response/length_mean": "length",
}
# MindSpeed-LLM's two lines: the policy's losses, then the critic's.
TWO_LINES = (
    {
        "loss/policy_avg": "pg_loss",
        "loss/policy_abs": "abs_pg_loss",
        "val/ratio": "ppo_ratio",
        "val/ratio_clamped": "ppo_ratio_clamped",
    },
    {"loss/value_avg": "vf_loss"},
)
TEXT_LIMIT = 400  # characters of a query or response in the table of samples
# The phases of an update in their order, and what the bar says while one goes on.
PHASES = {"generate": "generating", "score": "scoring", "experience": "crediting", "update": "updating"}


class Screen:
    """The terminal or log of the main process."""

    def __init__(
        self,
        total_updates: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        two_lines: bool = False,
    ) -> None:
        self.console = console or Console(highlight=False)
        self._two_lines = two_lines
        self._total_updates = total_updates
        self._clock = clock
        self._update = 0  # the last that is done
        self._first: tuple[int, float] | None = None  # the first that was done since the bar began, and when
        self._shares = dict.fromkeys(PHASES, 1 / len(PHASES))  # of the time of an update; a guess until one is done
        self._progress = Progress(
            TextColumn("{task.fields[place]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[time_left]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            get_time=clock,
        )
        self._task = self._progress.add_task("", total=total_updates, time_left="", place=f"0/{total_updates}")

    def begin(self, batch_table: Sequence[tuple[str, object, str]], preview: str) -> None:
        """Print the batch arithmetic (name, value, how it came about) and what the model sees; start the bar."""
        if batch_table:
            self.console.print(_batch_table(self._plain, batch_table))
        if preview:
            self.console.print(self._plain(preview), soft_wrap=True)
        self._first = None
        self._progress.start()

    def phase(self, name: str) -> None:
        """Name what goes on in the update, and move the bar by what is behind it."""
        before = list(PHASES)[: list(PHASES).index(name)] if name in PHASES else []
        done = self._update + sum(self._shares[phase] for phase in before)
        self._progress.update(self._task, completed=done, description=PHASES.get(name, "evaluating"))

    def step(self, update: int, numbers: Numbers, *, logged: bool) -> None:
        """Move the bar to `update`; if it is logged, print its line, which stays, or its two lines."""
        self._update = update
        self._shares = {phase: numbers.get(f"time/{phase}", share) for phase, share in self._shares.items()}
        left, place = self._time_left(), f"{update}/{self._total_updates}"
        self._progress.update(self._task, completed=update, description="", time_left=left, place=place)
        if not logged:
            return
        if self._two_lines:
            for line in two_lines(numbers):
                self._line(f"iteration {place}", line)
        else:
            self._line(f"update {place}", headline_text(numbers), "" if self.console.is_terminal else left)

    def samples(self, update: int, rows: Sequence[tuple[str, str, float]]) -> None:
        """Print a table of sample completions: query, model response, score."""
        table = Table(title=f"Samples after update {update}", show_lines=True, title_justify="left", expand=True)
        table.add_column("query", ratio=3)
        table.add_column("model response", ratio=3)
        table.add_column("score", ratio=1, justify="right")
        for query, response, score in rows:
            table.add_row(*(self._plain(cut_middle(text)) for text in (query, response)), f"{score:.4g}")
        self.console.print(table)

    def evaluation(self, update: int, numbers: Numbers) -> None:
        """Print the numbers of an evaluation in one line."""
        self._line(f"evaluation after update {update}", headline_text(numbers))

    def note(self, text: str) -> None:
        """Say one thing in a line of its own."""
        self._line(text)

    def saved(self, update: int, folder: Path) -> None:
        """Say where a model was saved."""
        self._line(f"saved after update {update}: {folder}")

    def end(self, files: Sequence[tuple[str, Path]], first: Numbers, last: Numbers) -> None:
        """Stop the bar; print how the run went, first to last logged update, and where the files lie."""
        self.close()
        table = Table(title="Done", title_justify="left", show_header=False)
        for name, label in HEADLINE.items():
            if name in first and name in last:
                table.add_row(label, f"{short(first[name])} → {short(last[name])}")
        for name, path in files:
            table.add_row(self._plain(name), self._plain(str(path)))
        self.console.print(table)

    def close(self) -> None:
        """Stop the bar and give the terminal back; closing twice is fine."""
        self._progress.stop()

    def _time_left(self) -> str:
        """Time to the last update at the mean speed so far, as `1:05:00 left`; empty while it cannot be known."""
        now = self._clock()
        if self._first is None:
            self._first = (self._update, now)
            return ""
        update, then = self._first
        seconds = (now - then) / max(1, self._update - update) * (self._total_updates - self._update)
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d} left"

    def _line(self, *texts: str) -> None:
        self.console.print(self._plain("  ".join(filter(None, texts))), soft_wrap=True)

    def _plain(self, text: str) -> Text:
        """`text` as it is: no markup, no control characters, nothing that the terminal's encoding lacks."""
        encoding = self.console.encoding
        return Text(visible(text).encode(encoding, "replace").decode(encoding), overflow="fold")


def headline_text(numbers: Numbers) -> str:
    """The few numbers to watch: reward, score, KL, length; those that are there."""
    return "  ".join(f"{label} {short(numbers[name])}" for name, label in HEADLINE.items() if name in numbers)


def two_lines(numbers: Numbers) -> list[str]:
    """The losses of the policy, and those of the critic if there is one, in scientific notation to compare runs by."""
    lines = ["  ".join(f"{label}: {numbers[name]:.6e}" for name, label in line.items() if name in numbers)
             for line in TWO_LINES]  # fmt: skip
    return [line for line in lines if line]


def short(number: int | float) -> str:
    """Two decimals, or two digits where these would show nothing."""
    return f"{number:.2f}" if number == 0 or 0.01 <= abs(number) < 1e6 else f"{number:.2g}"


def visible(text: str) -> str:
    r"""Show control and format characters (escapes, text direction) as `\x1b`; keep line breaks and tabs."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character)[0] != "C" else ascii(character)[1:-1]
        for character in text
    )


def cut_middle(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text`, or its head and tail of `limit` characters together where it is longer."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    return f"{head} […{len(text) - limit} characters…] {tail}"


def _batch_table(plain: Callable[[str], Text], rows: Sequence[tuple[str, object, str]]) -> Table:
    table = Table(title="Batch arithmetic", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("how it came about")
    for name, value, origin in rows:
        table.add_row(plain(name), plain(str(value)), plain(origin))
    return table
