"""The pages of settings and commands: what `--help` says, as tables with links."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.results import table

from nearstep.cli.command import Command
from nearstep.cli.commands import COMMANDS
from nearstep.cli.help import type_name
from nearstep.config.options import option_of
from nearstep.reports.metrics import escape_cell

# The settings of `nearstep fork` are those of `nearstep ppo`.
PPO, LIKE_PPO = "ppo", ("fork",)


def settings_page() -> str:
    """Every setting of `nearstep ppo`, by section."""
    ppo = by_name(PPO)
    titles = [title for title, _ in ppo.sections]
    return "\n".join([
        "# Settings",
        "",
        f"All {len(dataclasses.fields(ppo.settings))} settings of `nearstep ppo` and `nearstep fork`. The same names are the",
        "fields of `PPOConfig`, the keys of a settings file (`--config FILE`) and the flags of the command line. A switch is set",
        "by `--name` and unset by `--no-name`. Names of other libraries: [flags](migrations/flags.md),",
        "[tables you know](tables.md). `nearstep ppo --help` prints this page.",
        "",
        " · ".join(f"[{title}](#{_anchor(title)})" for title in titles),
        "",
        *_sections(ppo, "##"),
    ])  # fmt: skip


def commands_page() -> str:
    """Every command with its settings."""
    parts = [
        "# Commands",
        "",
        table(("command", "what it does"), [(f"[`{each.name}`](#{each.name})", each.summary) for each in COMMANDS]).rstrip(),
        "",
        "Every command takes `--help` and `--config FILE`. `nearstep --version` prints the version.",
        "Exit codes: 0 done, 1 failed, 2 wrongly asked, 130 interrupted; others say the command's own verdict.",
        "",
        "## Shell completion",
        "",
        "`nearstep completion SHELL` prints a script that completes commands, flags and their choices, without starting Python.",
        "",
        "```bash",
        "nearstep completion bash >> ~/.bashrc",
        "nearstep completion zsh > ~/.zfunc/_nearstep",
        "nearstep completion fish > ~/.config/fish/completions/nearstep.fish",
        "```",
        "",
        "zsh looks into the folders of `fpath`: `fpath=(~/.zfunc $fpath)` before `compinit` in `~/.zshrc`.",
        "",
    ]  # fmt: skip
    for command in COMMANDS:
        parts += [f"## {command.name}", "", command.summary, ""]
        if command.name in (PPO, *LIKE_PPO):
            parts += ["Its settings have a page of their own: [settings](settings.md).", ""]
        else:
            parts += [*_sections(command, "###")]
        if command.note:
            parts += [command.note, ""]
    return "\n".join(parts)


def by_name(name: str) -> Command[Any]:
    """The command of that name."""
    return next(each for each in COMMANDS if each.name == name)


def row(setting: "dataclasses.Field[Any]", kind: Any) -> tuple[str, str, str, str]:
    """Name, type, default and meaning, as cells."""
    noted = option_of(setting)
    limits = f" ({limit})" if (limit := noted.limits()) else ""
    return (
        f"`{setting.name}`",
        _cell(type_name(kind)),
        _default(setting.default),
        escape_cell(noted.help) + limits,
    )


def _sections(command: Command[Any], level: str) -> Iterator[str]:
    """The settings of a command, a table for each section."""
    titles = {first: title for title, first in command.sections}
    rows: list[tuple[str, str, str, str]] = []
    for setting in dataclasses.fields(command.settings):
        if setting.name in titles:
            yield from _table(rows)
            rows = []
            if level == "##" or len(titles) > 1:
                yield from (f"{level} {titles[setting.name]}", "")
        rows.append(row(setting, command.settings.types[setting.name]))
    yield from _table(rows)


def _table(rows: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    if rows:
        yield table(("setting", "takes", "default", "what it does"), rows)


def _cell(text: str) -> str:
    if not text:
        return "on, off"
    return f"`{escape_cell(text)}`" if "|" not in text else ", ".join(f"`{part}`" for part in text.split("|"))


def _default(default: object) -> str:
    if default is None or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else escape_cell(str(default))}`"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w]+", "-", title.lower().replace("'", "")).strip("-")
