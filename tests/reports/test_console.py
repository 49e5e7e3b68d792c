"""The screen shows what the loop says, whatever the model wrote, on a terminal and in a log file."""

import io
import re
from math import inf, nan
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from nearstep.reports.console import Screen, cut_middle, headline_text, short, visible

NUMBERS = {
    "objective/rlhf_reward": 1.25,
    "objective/scores": 1.5,
    "objective/kl": 5.0,
    "response/length_mean": 42.125,
    "lr": 3e-6,
}
HOSTILE = "[bold]no[/bold] [/red] [/] [link=http://x]y[/link] \\[ :smile: \x1b[2J\x1b]0;title\x07 \u202eabc"


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make(*, terminal: bool = False, encoding: str = "utf-8", width: int = 100, total: int = 4):
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=text, force_terminal=terminal, width=width, color_system=None, highlight=False, _environ={})
    clock = Clock()
    return Screen(total, console, clock), clock, lambda: raw.getvalue().decode(encoding)


def test_a_log_gets_one_plain_line_per_logged_update():
    screen, clock, output = make()
    screen.begin([], "")
    for update in (1, 2, 3, 4):
        clock.seconds += 30
        screen.step(update, NUMBERS, logged=update % 2 == 0)
    assert output().splitlines() == [
        "update 2/4  reward 1.25  score 1.50  kl 5.00  length 42.12  0:01:00 left",
        "update 4/4  reward 1.25  score 1.50  kl 5.00  length 42.12  0:00:00 left",
    ]


def test_time_left_is_unknown_at_first_and_counts_hours():
    screen, clock, output = make(total=62)
    for update in (1, 2):
        clock.seconds += 60
        screen.step(update, {}, logged=True)
    first, second = output().splitlines()
    assert first == "update 1/62"
    assert second.endswith("1:00:00 left")


def test_time_left_is_known_for_updates_that_take_an_hour():
    screen, clock, output = make(total=3)
    for update in (1, 2):
        clock.seconds += 3600
        screen.step(update, {}, logged=True)
    assert output().splitlines()[-1].endswith("1:00:00 left")


def test_a_terminal_gets_a_bar_with_the_reward_on_it():
    screen, _, output = make(terminal=True, width=160)
    screen.begin([], "")
    screen.step(3, NUMBERS, logged=True)
    screen.close()
    assert "3/4 ━━━" in output()
    assert "reward 1.25  score 1.50  kl 5.00  length 42.12" in output()
    assert output().count("\x1b[?25l") == output().count("\x1b[?25h") == 1  # the cursor is given back


def test_headline_shows_what_is_there():
    assert headline_text({"objective/kl": 0.5, "unknown": 1.0}) == "kl 0.50"
    assert headline_text({"objective/scores": float("nan")}) == "score nan"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (-1.005, "-1.00"),
        (0.01, "0.01"),
        (0.00421, "0.0042"),
        (-3e-6, "-3e-06"),
        (1e6, "1e+06"),
        (nan, "nan"),
        (-inf, "-inf"),
    ],
)
def test_short(number, text):
    assert short(number) == text


def test_batch_table_and_preview():
    screen, _, output = make()
    screen.begin(
        [("batch_size", 64, "8 rows × 4 × 2 processes [as given]"), ("updates", 10, "640 / 64")], "sees: [INST]"
    )
    lines = output().splitlines()
    assert any(
        "batch_size" in line and "64" in line and "8 rows × 4 × 2 processes [as given]" in line for line in lines
    )
    assert lines[-1] == "sees: [INST]"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_text_of_a_model_is_shown_as_it_is_and_harms_nothing(terminal, encoding):
    screen, _, output = make(terminal=terminal, encoding=encoding, width=400)
    screen.begin([("[/name]", "[/value]", "[/origin]")], HOSTILE)
    screen.samples(2, [(HOSTILE, "漢字 ✓ <eos>[PAD]", 0.5)])
    screen.saved(2, Path("[/folder]"))
    screen.end([("metrics", Path("/tmp/[bold]x.jsonl"))], {}, {})
    shown = output()
    for literal in ("[bold]no[/bold] [/red] [/] [link=http://x]y[/link] \\[ :smile:", "[/folder]", "[/value]", "[PAD]"):
        assert literal in shown
    assert r"\x1b[2J\x1b]0;title\x07 \u202eabc" in shown
    assert "\x1b[2J" not in shown
    assert ("漢字" in shown) == (encoding == "utf-8")


def test_samples_table_has_query_response_and_score():
    screen, _, output = make()
    screen.samples(12, [("SUBREDDIT: r/x\nTL;DR:", " I moved out.<eos>", 3.921875)])
    shown = output()
    for text in (
        "Samples after update 12",
        "query",
        "model response",
        "score",
        "SUBREDDIT: r/x",
        "moved out.<eos>",
        "3.922",
    ):
        assert text in shown


def test_long_text_is_cut_in_the_middle():
    assert cut_middle("abcdefghij", limit=10) == "abcdefghij"
    assert cut_middle("abcdefghijk", limit=5) == "abc […6 characters…] jk"
    screen, _, output = make(width=200)
    screen.samples(1, [("q" * 5000 + "END", "START" + "r" * 5000, 1.0)])
    assert "END" in output()
    assert "START" in output()
    assert output().count("q") + output().count("r") < 1000


def test_visible_keeps_line_breaks_tabs_and_letters():
    assert visible("a\tb\nc é 漢 \r\x00") == "a\tb\nc é 漢 \\r\\x00"


def test_end_says_how_the_run_went_and_where_files_lie():
    screen, _, output = make()
    screen.end(
        [("models", Path("out")), ("metrics", Path("out/metrics.jsonl"))],
        {"objective/rlhf_reward": -0.5, "objective/kl": 0.0},
        {"objective/rlhf_reward": 1.25},
    )
    shown = output()
    assert "-0.50 → 1.25" in shown
    assert "out/metrics.jsonl" in shown
    assert "kl" not in shown


def last_of_the_bar(shown):
    """What stands on the last line that the bar drew."""
    return shown.replace("\x1b[2K", "\r").split("\r")[-1].strip()


def test_the_bar_moves_within_an_update_and_names_the_phase():
    screen, _, output = make(terminal=True, width=80, total=2)
    screen.begin([], "")
    filled = []
    for name, words in [("generate", "generating"), ("score", "scoring"), ("experience", "crediting"),
                        ("update", "updating")]:  # fmt: skip
        screen.phase(name)
        screen._progress.refresh()
        assert words in last_of_the_bar(output())
        assert "0/2" in last_of_the_bar(output())
        filled.append(screen._progress.tasks[0].completed)
    assert filled == [0, 0.25, 0.5, 0.75]  # equal shares, until an update has shown its own
    shares = {"time/generate": 0.7, "time/score": 0.1, "time/experience": 0.1, "time/update": 0.1}
    screen.step(1, NUMBERS | shares, logged=True)
    screen.phase("score")
    assert screen._progress.tasks[0].completed == pytest.approx(1.7)
    screen.close()
    assert "update 1/2  reward 1.25  score 1.50  kl 5.00  length 42.12\n" in output().replace("\r", "")  # and it stays


def test_what_is_said_at_the_end_of_an_update_is_said_on_the_bar_too():
    screen, _, output = make(terminal=True, width=80, total=1)
    screen.begin([], "")
    screen.step(1, NUMBERS, logged=False)
    screen.phase("evaluate")
    screen._progress.refresh()
    assert "evaluating" in last_of_the_bar(output())
    assert screen._progress.tasks[0].completed == 1
    screen.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_and_the_bar_fit_80_columns(terminal):
    screen, clock, output = make(terminal=terminal, width=80, total=1000)
    long = "of the policy, on 12,345 or 12,346 rows each; the critic takes 1,234,567, alone in the first 50 updates"
    screen.begin([("episodes per update", "12,345", long), ("optimizer steps", "1,234,567", long)], "")
    for update in (998, 999):
        clock.seconds += 36_000
        screen.phase("generate")
        screen.step(update, NUMBERS, logged=True)
    screen.samples(5, [("q" * 300, "r" * 300, -1234.5)])
    screen.end([("metrics", Path("a/very/long/place/" * 8) / "metrics.jsonl")], NUMBERS, NUMBERS)
    for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", output()).replace("\r", "\n").splitlines():
        assert cell_len(line) <= 80, line
