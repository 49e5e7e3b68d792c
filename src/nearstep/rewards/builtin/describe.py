"""What `nearstep rewards` prints: all built-in rewards in a list, and one in full."""

import inspect
import shutil
import textwrap
from collections.abc import Iterator

from nearstep.common.errors import ConfigError
from nearstep.config.options import option_of
from nearstep.rewards.builtin.metadata import BuiltIn, name_of, parameter_entry, parameters
from nearstep.rewards.builtin.spec import absence
from nearstep.rewards.builtin.table import BUILT_INS, GROUPS

_NAME_WIDTH = 26
_RANGE_WIDTH = 9
_FACT_WIDTH = 10
_PARAMETER_WIDTH = 30


def overview() -> str:
    """All built-in rewards by group: name, range, what it measures and needs."""
    lines = []
    for group, kinds in GROUPS.items():
        lines += ["", group]
        for kind in kinds:
            metadata = kind.metadata
            needs = f" Needs {metadata.needs}." if metadata.needs else ""
            name = f"{name_of(kind):<{_NAME_WIDTH}}{metadata.range}"
            lines += _entry(name, f"{summary_of(kind)}{needs}", _NAME_WIDTH + _RANGE_WIDTH)
    lines += ["", *_wrapped("nearstep rewards NAME shows one in full, with its parameters and how it is gamed.", "")]
    return "\n".join(lines[1:])


def details(name: str) -> str:
    """One built-in reward in full. Raises a ConfigError if there is none of this name."""
    if name not in BUILT_INS:
        raise ConfigError(f"{name!r} {absence(name)}")
    kind = BUILT_INS[name]
    metadata = kind.metadata
    lines = [name, *_wrapped(measures_of(kind), "  "), ""]
    facts = {"range": metadata.range, "needs": metadata.needs or "nothing", "gaming": metadata.gaming}
    if metadata.extra:
        facts["install"] = f"pip install 'nearstep[{metadata.extra}]'"
    for fact, value in facts.items():
        lines += _entry(fact, value, _FACT_WIDTH)
    lines += ["", "  parameters" if parameters(kind) else "  no parameters"]
    for parameter in parameters(kind):
        lines += _entry(f"  {parameter_entry(parameter)}", option_of(parameter).help, _PARAMETER_WIDTH)
    return "\n".join(lines)


def measures_of(kind: type[BuiltIn]) -> str:
    """What a built-in reward measures, in full, as its docstring says."""
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def summary_of(kind: type[BuiltIn]) -> str:
    """What a built-in reward measures, in a sentence."""
    return measures_of(kind).split("\n")[0]


def _entry(name: str, text: str, width: int) -> Iterator[str]:
    """A name, then the text in a column of its own; a name too long for its column gets a line to itself."""
    first, *rest = _wrapped(text, " " * (width + 2))
    if len(name) >= width:
        yield f"  {name}"
        yield first
    else:
        yield f"  {name:<{width}}{first.strip()}"
    yield from rest


def _wrapped(text: str, indent: str) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    return [
        line
        for paragraph in text.split("\n")
        for line in textwrap.wrap(
            paragraph, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    ]
