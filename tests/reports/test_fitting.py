"""Tables and lines fit a screen of any width, with every number whole."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from nearstep.config.ppo import PPOConfig
from nearstep.demo.judge import ShareOfFacts
from nearstep.demo.outcome import DemoOutcome, outcome_tables
from nearstep.evaluation.summary import ScoreSummary
from nearstep.reports.fitting import Column, fitting_tables, flowing

WIDTHS = [40, 60, 80, 120]


def printed(width, *things):
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, _environ={})
    console.print(*things, sep="\n")
    lines = text.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary_of_scores_shows_every_number(width):
    names = ["helpful", "a_reward_with_a_long_name", "length", "漢字", "fifth", "sixth"]
    summary = ScoreSummary(names)
    for number, name in enumerate([*names, "total"]):
        summary.values[name] = [1.2345 * 10**number]
        summary.failed[name] = 987654 + number
    lines = printed(width, *summary.tables(width))
    words = " ".join(lines).split()
    for number in range(7):
        assert words.count(f"{1.2345 * 10**number:.4g}") == 1 + 7  # mean and quantiles; the deviation is 0
        assert words.count(str(987654 + number)) == 1
    assert {line.split()[0] for line in lines if line.split()[0].startswith("m")} == {"mean", "min", "max"}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_demo_shows_every_number(width):
    outcome = DemoOutcome(ShareOfFacts(300, 20, 400), 3.25, 1.75, 12.5, 0.99)
    low, high = outcome.preferred.interval()
    lines = printed(width, *outcome_tables({"supervised start": outcome, "after PPO": outcome}, width))
    text = " ".join(" ".join(lines).split())
    for number in ("77.5%", f"{low:.1%} – {high:.1%}", "3.25", "1.75", "12.5", "99%"):
        assert text.count(number) == 2, number


def test_columns_that_do_not_fit_stand_in_a_table_below():
    first = Column("", ["a", "b"], "left")
    tables = fitting_tables(first, [Column(str(n), ["12345678", "1"]) for n in range(3)], 25)
    assert [len(table.columns) for table in tables] == [3, 2]
    assert printed(25, *tables) == [
        "          0         1", "a  12345678  12345678", "b         1         1",
        "          2", "a  12345678", "b         1",
    ]  # fmt: skip
    assert [len(table.columns) for table in fitting_tables(first, [], 10)] == [1]


def test_pieces_flow_into_lines():
    pieces = [Text("aaaa"), Text("bbbb"), Text("cc"), Text("漢字漢字")]
    assert [line.plain for line in flowing(pieces, 10)] == ["aaaa  bbbb", "cc", "漢字漢字"]
    assert list(flowing([], 10)) == []


@pytest.mark.parametrize("columns", WIDTHS)
def test_help_fits(columns, monkeypatch):
    from nearstep.cli.commands import COMMANDS
    from nearstep.cli.help import command_help, overview

    monkeypatch.setenv("COLUMNS", str(columns))
    text = "\n".join([overview(COMMANDS), *map(command_help, COMMANDS)])
    assert {line for line in text.splitlines() if cell_len(line) > columns} == set()
    assert all(f"--{name}" in text for name in PPOConfig.types)
