"""What the user sees of a run: batch arithmetic, how it goes, sample completions, where files lie.

On a terminal a calm dashboard is live under what is printed; elsewhere, and where it is asked for, every logged update
has one plain line. Text of models and data sets never reaches rich as markup, and its control characters never reach
the terminal.
"""

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeAlias

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nearstep.reports.dashboard import HEADLINE, OTHER_PHASES, PHASES, Dashboard, clock_time, headline_text, short
from nearstep.reports.log_lines import logs_above
from nearstep.reports.metrics import Numbers
from nearstep.training.evaluated import Sample

LogStyle: TypeAlias = Literal["dashboard", "line", "two_line"]

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
REFRESHES_PER_SECOND = 2


class Screen:
    """The terminal or log of the main process."""

    def __init__(
        self,
        total_updates: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        style: LogStyle = "dashboard",
    ) -> None:
        self.console = console or Console(highlight=False)
        self.is_live = style == "dashboard" and shows_live(self.console)
        self._two_lines = style == "two_line"
        self._total_updates = total_updates
        self._clock = clock
        self._first: tuple[int, float] | None = None  # the first update that was done since the beginning, and when
        self._shares = dict.fromkeys(PHASES, 1 / len(PHASES))  # of the time of an update; a guess until one is done
        self.dashboard = Dashboard(total_updates, clock, self._plain)
        self._live = ExitStack()

    def begin(self, batch_table: Sequence[tuple[str, object, str]], preview: str) -> None:
        """Print the batch arithmetic (name, value, how it came about) and what the model sees; go live."""
        if batch_table:
            self.console.print(_batch_table(self._plain, batch_table))
        if preview:
            self.console.print(self._plain(preview), soft_wrap=not self.console.is_terminal)
        self._first = None
        if self.is_live:
            self.dashboard.began = self._clock()
            streams = (sys.stdout, sys.stderr)
            self._live.enter_context(
                Live(
                    self.dashboard,
                    console=self.console,
                    refresh_per_second=REFRESHES_PER_SECOND,
                    transient=True,
                    vertical_overflow="crop",
                )
            )
            self._live.enter_context(logs_above(streams))

    def phase(self, name: str) -> None:
        """Name what goes on in the update, and move the bar by what is behind it."""
        before = list(PHASES)[: list(PHASES).index(name)] if name in PHASES else []
        self.dashboard.completed = self.dashboard.update + sum(self._shares[phase] for phase in before)
        self.dashboard.phase = PHASES.get(name) or OTHER_PHASES.get(name, "")

    def step(self, update: int, numbers: Numbers, *, logged: bool, place: str = "") -> None:
        """Update `update` is done, at this `place` in episodes and epochs; if it is logged, show its numbers."""
        self._shares = {phase: numbers.get(f"time/{phase}", share) for phase, share in self._shares.items()}
        board = self.dashboard
        board.update, board.completed, board.phase, board.place = update, update, "", place
        board.time_left = self._time_left()
        if not logged:
            return
        board.add(numbers)
        if self.is_live:
            return
        where = f"{update}/{self._total_updates}"
        if self._two_lines:
            for line in two_lines(numbers):
                self._line(f"iteration {where}", line)
        else:
            self._line(f"update {where}", headline_text(numbers), board.time_left)

    def samples(self, update: int, rows: Sequence[Sample]) -> None:
        """Print sample completions: the query, the response now and its score, and those of the start."""
        table = Table(title=f"Samples after update {update}", title_justify="left", box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("text", ratio=1)
        for row in rows:
            table.add_row("query", "", self._plain(cut_middle(row.query)))
            table.add_row("response", f"{row.score:.4g}", self._plain(cut_middle(row.response)))
            if row.start_response is not None:
                score = "none" if row.start_score is None else f"{row.start_score:.4g}"
                table.add_row("start", score, self._plain(cut_middle(row.start_response)))
            table.add_row()
        self.console.print(table)

    def evaluation(self, update: int, numbers: Numbers) -> None:
        """Print the numbers of an evaluation in one line."""
        self.dashboard.evaluation = [f"evaluation after update {update}", *evaluation_texts(numbers)]
        self._line(*self.dashboard.evaluation)

    def note(self, text: str) -> None:
        """Say one thing in a line of its own."""
        self._line(text)

    def alert(self, text: str) -> None:
        """Say what needs attention in a line of its own, and keep it in sight until the next."""
        self.dashboard.alert = text
        self._line(text)

    def saved(self, update: int, folder: Path) -> None:
        """Say where a model was saved."""
        self._line(f"saved after update {update}: {folder}")

    def end(self, files: Sequence[tuple[str, Path]], first: Numbers, last: Numbers) -> None:
        """Take the dashboard away; print how the run went, first to last logged update, and where the files lie."""
        self.close()
        table = Table(title="Done", title_justify="left", show_header=False)
        table.add_column(overflow="fold")
        table.add_column(overflow="fold")
        for name, label in HEADLINE.items():
            if name in first and name in last:
                table.add_row(label, f"{short(first[name])} → {short(last[name])}")
        for name, path in files:
            table.add_row(self._plain(name), self._plain(str(path)))
        self.console.print(table)

    def close(self) -> None:
        """Take the dashboard away and give the terminal back; closing twice is fine."""
        self._live.close()

    def _time_left(self) -> str:
        """Time to the last update at the mean speed so far, as `1:05:00 left`; empty while it cannot be known."""
        now, done = self._clock(), self.dashboard.update
        if self._first is None:
            self._first = (done, now)
            return ""
        update, then = self._first
        seconds = (now - then) / max(1, done - update) * (self._total_updates - done)
        return f"{clock_time(seconds)} left"

    def _line(self, *texts: str) -> None:
        self.console.print(self._plain("  ".join(filter(None, texts))), soft_wrap=not self.console.is_terminal)

    def _plain(self, text: str) -> Text:
        """`text` as it is: no markup, no control characters, nothing that the terminal's encoding lacks."""
        encoding = self.console.encoding
        return Text(visible(text).encode(encoding, "replace").decode(encoding), overflow="fold")


def shows_live(console: Console) -> bool:
    """Whether what is drawn can be drawn over: on a terminal that can, and not in the log of a CI job."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter and not in_ci


def evaluation_texts(numbers: Numbers) -> list[str]:
    """What is said of an evaluation: score, KL and length with their standard errors, shares of wins, the judge."""
    found = []
    for name, number in numbers.items():
        *before, group, last = ["", *name.split("/")]  # before: the set, the judge
        label = EVALUATION_LABELS.get(f"{group}/{last}")
        if label is None:
            continue
        error, low, high = (numbers.get(f"{name}{ending}") for ending in ("_stderr", "_low", "_high"))
        if low is not None and high is not None:
            shown = f"{number:.0%} ({low:.0%} – {high:.0%})"
        else:
            shown = short(number) if error is None else f"{short(number)} ±{short(error)}"
        found.append(" ".join(filter(None, [*before, label, shown])))
    return found


EVALUATION_LABELS = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "response/length_mean": "length",
    "win_rate/start": "wins against start",
    "win_rate/reference": "wins against reference",
    "judge/scores": "judge",
}


def two_lines(numbers: Numbers) -> list[str]:
    """The losses of the policy, and those of the critic if there is one, in scientific notation to compare runs by."""
    lines = ["  ".join(f"{label}: {numbers[name]:.6e}" for name, label in line.items() if name in numbers)
             for line in TWO_LINES]  # fmt: skip
    return [line for line in lines if line]


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
    table.add_column("quantity", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how it came about", overflow="fold")
    for name, value, origin in rows:
        table.add_row(plain(name), plain(str(value)), plain(origin))
    return table
