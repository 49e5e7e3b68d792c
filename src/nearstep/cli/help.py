"""What `--help` prints: the commands, and the settings of one command by section."""

import dataclasses
import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import Field
from typing import Any, Literal, get_args, get_origin

from nearstep.cli import several
from nearstep.cli.command import Command
from nearstep.config.conversion import OR_NONE, ModelName, Names, TemplateKeywords
from nearstep.config.options import option_of

_NAMES_WIDTH = 30
_TWO_COLUMNS = 60  # on narrower screens the meaning stands under the name


def overview(commands: Sequence[Command[Any]]) -> str:
    """Help on all commands."""
    names = [line for command in commands for line in _hanging(f"{command.name:<12} {command.summary}", 15)]
    more = "nearstep COMMAND --help lists the settings of a command, nearstep --version prints the version."
    return "\n".join(["usage: nearstep COMMAND [--name value …]", "", *names, "", *_wrapped(more)])


def command_help(command: Command[Any]) -> str:
    """Help on one command: every setting with its type, meaning and default."""
    titles = {first: title for title, first in command.sections}
    word = (command.operand or "").upper()
    operand = f" {word if command.needs_operand else f'[{word}]'}" if word else ""
    lines = [
        *_wrapped(f"usage: nearstep {command.name}{operand} [--config FILE] [--name value …]"),
        "",
        *_wrapped(command.summary),
        "",
        *_recipes(command),
        *_entry("--config FILE", "settings from a YAML file, one `name: value` per line; flags beat the file"),
    ]
    if command.shares_work:
        lines += _entry(f"{several.FLAG} N", several.MEANING)
    for setting in dataclasses.fields(command.settings):
        if setting.name in titles:
            lines += ["", titles[setting.name]]
        lines += _entry(
            f"--{setting.name} {type_name(command.settings.types[setting.name])}".rstrip(), _meaning(setting)
        )
    if command.note:
        lines += ["", *_wrapped(command.note)]
    return "\n".join(lines)


def _recipes(command: Command[Any]) -> Iterator[str]:
    """The entry for --recipe, where the command has any."""
    if command.recipes:
        yield from _entry("--recipe NAME", f"start from settings that belong together: {', '.join(command.recipes)}")


def _entry(names: str, meaning: str) -> Iterator[str]:
    """The names, then the meaning in a column of its own; names too long for theirs get a line to themselves."""
    if _width() < _TWO_COLUMNS:
        yield from (f"  {line}" for line in _broken_at_choices(names, _width() - 2))
        yield from _hanging(meaning, 6, first=6)
        return
    first, *rest = textwrap.wrap(meaning, _width() - _NAMES_WIDTH - 4, break_on_hyphens=False)
    if len(names) > _NAMES_WIDTH:
        yield from (f"  {line}" for line in _broken_at_choices(names, _width() - 4))
        names = ""
    yield f"  {names:<{_NAMES_WIDTH}}  {first}"
    yield from (f"  {'':<{_NAMES_WIDTH}}  {line}" for line in rest)


def _broken_at_choices(names: str, width: int) -> Iterator[str]:
    """Names too long for a line, broken after a `|`."""
    line = ""
    for choice in re.split(r"(?<=\|)", names):
        if len(line) + len(choice) > width:
            yield line
            line = "    "
        line += choice
    yield line


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False)


def _hanging(text: str, indent: int, first: int = 2) -> list[str]:
    """The text in lines, all but the first of them indented further."""
    return textwrap.wrap(
        text, _width(), initial_indent=" " * first, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _width() -> int:
    return max(30, min(120, shutil.get_terminal_size().columns))


def _meaning(setting: Field[Any]) -> str:
    meaning = option_of(setting).help
    if setting.default is True:
        return f"{meaning} (on; --no-{setting.name} switches it off)"
    if setting.default in (None, ()) or setting.default is False:
        return meaning
    default = setting.default
    return f"{meaning} (default {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def type_name(annotation: Any) -> str:
    """The type as help shows it: `INT`, `TEXT …` for several, `linear|cosine` for choices, nothing for a switch."""
    if annotation == Names:
        return "OURS=THEIRS …"
    if annotation == TemplateKeywords:
        return "JSON"
    arguments = get_args(annotation)
    if get_origin(annotation) in OR_NONE:
        return type_name(next(choice for choice in arguments if choice is not types.NoneType))
    if get_origin(annotation) is Literal:
        return "|".join(arguments)
    if get_origin(annotation) is tuple:
        return f"{type_name(arguments[0])} …"
    return {bool: "", int: "INT", float: "NUMBER", str: "TEXT", ModelName: "MODEL"}[annotation]
