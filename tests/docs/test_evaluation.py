"""docs/evaluation.md has every metric as the code has it, and its commands and settings exist."""

import re
import shlex
from pathlib import Path

from nearstep import EvalConfig
from nearstep.cli.commands import COMMANDS
from nearstep.config.evaluation import METRICS, OTHER_NAMES, RULES
from nearstep.config.generating import GenerateOptions
from nearstep.evaluation.completion_file import FIELDS
from nearstep.evaluation.metric_table import HARNESS, TABLE, described
from nearstep.rewards.builtin.table import BUILT_INS

WHOLE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
PAGE = WHOLE.partition("\n## nearstep eval\n")[2]


def cells(text):
    return text.replace("|", "\\|")


def test_the_table_of_the_page_is_that_of_the_code():
    lines = PAGE.splitlines()
    for metric in TABLE:
        for number, figure in enumerate(metric.figures):
            name = "" if number else f"`{metric.name}`"
            row = [name, f"`{figure.name}`", cells(figure.formula), cells(figure.range), figure.better, figure.counts,
                   figure.source]  # fmt: skip
            assert "| " + " | ".join(row) + " |" in lines, figure.name
        assert f"| `{metric.name}` | {metric.needs} |" in lines
    listed = re.findall(r"^\| (?:`\w+`)? ?\| `([^`]+)` \|", PAGE, flags=re.M)
    assert listed == [figure.name for metric in TABLE for figure in metric.figures]
    assert HARNESS.name.removesuffix("*") in PAGE


def test_the_names_of_the_settings_are_those_of_the_table():
    assert tuple(metric.name for metric in TABLE) == METRICS
    assert set(OTHER_NAMES.values()) <= set(METRICS)
    assert set(RULES.values()) <= set(BUILT_INS)
    assert described("pass@16").name == "pass@*"
    assert described("rewardbench/Ties").name == "rewardbench/Ties"
    assert described("rewardbench/Focus").name == "rewardbench/*"


def test_the_commands_of_the_page_can_be_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("test.jsonl", "pairs.jsonl", "gsm8k.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("{}")
    [block] = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    known = {command.name: command for command in COMMANDS}
    typed = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.startswith("nearstep")]
    assert len(typed) == 6
    for _, command, *words in typed:
        known[command].read(words)


def test_the_settings_and_columns_that_the_page_names_exist():
    known = set(EvalConfig.types) | set(GenerateOptions.types)
    named = {name for name in re.findall(r"--(\w+)", PAGE) if name != "json"}
    assert named <= known
    assert all(f"`{name}`" in PAGE for name in FIELDS)
