"""The screen shows what the loop says, whatever the model wrote, on a terminal and in a log file."""

import io
import logging
import re
import sys
from math import inf, nan
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from nearstep.reports.console import Screen, cut_middle, visible
from nearstep.reports.dashboard import headline_text, short, sparkline
from nearstep.training.evaluated import Sample

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


def test_a_terminal_gets_a_dashboard_with_the_reward_on_it():
    screen, _, output = make(terminal=True, width=160)
    screen.begin([], "")
    screen.step(3, NUMBERS, logged=True)
    screen.close()
    assert "update 3/4  ━━━" in output()
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
    screen.samples(2, [Sample(HOSTILE, "漢字 ✓ <eos>[PAD]", 0.5, HOSTILE, 0.25)])
    screen.saved(2, Path("[/folder]"))
    screen.end([("metrics", Path("/tmp/[bold]x.jsonl"))], {}, {})
    shown = output()
    for literal in ("[bold]no[/bold] [/red] [/] [link=http://x]y[/link] \\[ :smile:", "[/folder]", "[/value]", "[PAD]"):
        assert literal in shown
    assert r"\x1b[2J\x1b]0;title\x07 \u202eabc" in shown
    assert "\x1b[2J" not in shown
    assert ("漢字" in shown) == (encoding == "utf-8")


def test_samples_table_has_query_response_and_score_and_what_the_start_said():
    screen, _, output = make()
    screen.samples(12, [Sample("SUBREDDIT: r/x\nTL;DR:", " I moved out.<eos>", 3.921875, "I was here", 0.125)])
    shown = output()
    for text in (
        "Samples after update 12",
        "query",
        "response",
        "score",
        "start",
        "I was here",
        "0.125",
        "SUBREDDIT: r/x",
        "moved out.<eos>",
        "3.922",
    ):
        assert text in shown


def test_long_text_is_cut_in_the_middle():
    assert cut_middle("abcdefghij", limit=10) == "abcdefghij"
    assert cut_middle("abcdefghijk", limit=5) == "abc […6 characters…] jk"
    screen, _, output = make(width=200)
    screen.samples(1, [Sample("q" * 5000 + "END", "START" + "r" * 5000, 1.0)])
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


def drawn(screen):
    """The lines of the dashboard as it is drawn now."""
    text = io.StringIO()
    Console(file=text, width=screen.console.width, color_system=None, _environ={}).print(screen.dashboard)
    return text.getvalue().splitlines()


def test_the_dashboard_moves_within_an_update_and_names_the_phase():
    screen, clock, output = make(terminal=True, width=80, total=2)
    screen.begin([], "")
    for phase, words, share in [("generate", "generating", 0), ("score", "scoring", 6), ("experience", "crediting", 12),
                                ("update", "updating", 18)]:  # fmt: skip
        screen.phase(phase)  # equal shares of an update, until one has shown its own
        clock.seconds += 60
        assert drawn(screen)[0].split() == ["update", "0/2", "━" * (share // 2) + "─" * (24 - share // 2), words,
                                            f"0:0{share // 6 + 1}:00"]  # fmt: skip
    shares = {"time/generate": 0.7, "time/score": 0.1, "time/experience": 0.1, "time/update": 0.1}
    screen.step(1, NUMBERS | shares, logged=True, place="episode 8  epoch 0.50")
    screen.phase("score")
    assert screen.dashboard.completed == pytest.approx(1.7)
    screen.phase("evaluate")
    assert "evaluating" in " ".join(drawn(screen))
    screen.close()
    assert "episode 8  epoch 0.50" in "\n".join(drawn(screen))
    assert "update 1/2  reward" not in output()  # numbers are on the dashboard, not in a line for each update


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
EVALUATION = {"objective/scores": 1.5, "objective/scores_stderr": 0.25, "win_rate/start": 0.75,
              "win_rate/start_low": 0.5, "win_rate/start_high": 0.875, "judge/scores": -3.0}  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_every_number_is_whole_at_every_width(terminal, width):
    screen, clock, output = make(terminal=terminal, width=width, total=1000)
    long = "of the policy, on 12,345 or 12,346 rows each; the critic takes 1,234,567, alone in the first 50 updates"
    screen.begin([("episodes per update", "12,345", long), ("optimizer steps", "1,234,567", long)], "")
    for update in (997, 998, 999):
        clock.seconds += 36_000
        screen.phase("generate")
        screen.step(update, {**NUMBERS, "objective/kl": update}, logged=True, place="episode 8192  epoch 0.50")
    screen.evaluation(5, EVALUATION)
    screen.alert("the KL runs away")
    screen.samples(5, [Sample("q" * 300, "r" * 300, -1234.5, "s" * 300, 0.4321)])
    board = drawn(screen)
    screen.end([("metrics", Path("a/very/long/place/" * 8) / "metrics.jsonl")], NUMBERS, NUMBERS)
    text = ESCAPES.sub("\n", output()).replace("\r", "\n")
    in_lines = [line for line in [*text.splitlines(), *board] if not line.startswith(("update", "evaluation"))]
    for line in in_lines:  # a line of a log is one line, however long
        assert cell_len(line) <= width, line
    for number in ("12,345", "1,234,567", "-1234", "0.4321", "1.25 → 1.25"):
        assert number in text, number
    shown = " ".join(" ".join(board).split())
    for piece in ("update 999/1000", "reward 1.25", "kl 999.00 ▁▅█", "length 42.12", "10:00:00 left",
                  "the KL runs away", "episode 8192",
                  "score 1.50 ±0.25", "wins against start 75% (50% – 88%)", "judge -3.00"):  # fmt: skip
        assert piece in shown, piece


def test_sparkline_by_hand():
    assert sparkline([]) == sparkline([1.0]) == ""
    assert sparkline([5, 5, 5]) == "▁▁▁"
    assert sparkline([nan, 0, 7]) == " ▁█"
    assert sparkline([0, 0, 2, 2, 7, 7], width=3) == "▁▃█"  # means 0, 2, 7


def test_lines_of_libraries_come_above_the_dashboard(monkeypatch):
    screen, _, output = make(terminal=True, width=80)
    old = io.StringIO()
    monkeypatch.setattr(sys, "stderr", old)
    handler = logging.StreamHandler(old)
    logger = logging.getLogger("tests.a_library")
    logger.addHandler(handler)
    screen.begin([], "")
    screen.step(1, NUMBERS, logged=True)
    logger.warning("a library says this")
    print("a reward function prints")
    screen.close()
    logger.warning("and this is later")
    logger.removeHandler(handler)
    assert "a library says this\n" in output().replace("\r", "")
    assert "a reward function prints\n" in output().replace("\r", "")
    assert old.getvalue() == "and this is later\n"


@pytest.mark.parametrize(("variable", "live"), [("1", False), ("true", False), ("false", True), ("", True)])
def test_in_ci_lines_are_plain(monkeypatch, variable, live):
    monkeypatch.setenv("CI", variable)
    screen, _, output = make(terminal=True, width=80)
    screen.begin([], "")
    screen.step(1, NUMBERS, logged=True)
    screen.close()
    assert ("update 1/4  reward 1.25" in output()) == (not live)


@pytest.mark.parametrize("style", ["line", "two_line"])
def test_a_style_of_lines_is_kept_on_a_terminal(style):
    text = io.StringIO()
    screen = Screen(4, Console(file=text, force_terminal=True, width=80, _environ={}), style=style)
    screen.begin([], "")
    screen.step(1, NUMBERS | {"loss/value_avg": 0.5}, logged=True)
    screen.close()
    assert text.getvalue().startswith("update 1/4" if style == "line" else "iteration 1/4")
