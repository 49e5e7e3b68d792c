"""The index of errors: each class, when it comes, examples with what to do, and the words to look for in the docs.

python -m nearstep.reports.error_index > docs/errors.md
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from nearstep.common import errors
from nearstep.judges.limits import LimitReachedError


@dataclass(frozen=True)
class Example:
    """A message as it is shown, the fixed words of it that stand in the source, and what to do."""

    message: str
    words: str
    remedy: str


@dataclass(frozen=True)
class ErrorEntry:
    """A class of errors."""

    kind: type[errors.NearstepError]
    when: str  # a sentence, and with which exit code
    examples: tuple[Example, ...]


def _read() -> tuple[ErrorEntry, ...]:
    table = tomllib.loads((files(__package__) / "error_index.toml").read_text(encoding="utf-8"))
    kinds = {**vars(errors), LimitReachedError.__name__: LimitReachedError}
    return tuple(
        ErrorEntry(kinds[each["kind"]], each["when"], tuple(Example(**example) for example in each["examples"]))
        for each in table["error"]
    )


INDEX = _read()


def text() -> str:
    """The page."""
    parts = [
        "# Errors",
        "Every error that is meant for you derives from `NearstepError` and says what was wrong, where, and what to "
        "do. On the command line it is one message behind `nearstep: `, without a traceback; a traceback is a fault of "
        "nearstep or of code of yours that ran in it. In Python catch the class; most are `ValueError` or "
        "`RuntimeError` too. Look for the words of a message on this page, or in all docs: "
        '`grep -ri "WORDS" docs/`.',
        *(part for entry in INDEX for part in _entry(entry)),
        "Exit codes: 0 done, 1 failed, 2 wrongly asked, 130 interrupted, 143 ended by a signal.",
        "Made by `python -m nearstep.reports.error_index`.",
    ]
    return "\n\n".join(parts) + "\n"


def _entry(entry: ErrorEntry) -> Iterator[str]:
    yield f"## {entry.kind.__name__}"
    said = " ".join((entry.kind.__doc__ or "").split())
    yield f"{said} {entry.when}."
    rows = [f"| {_cell(each.message)} | {_cell(each.remedy)} |" for each in entry.examples]
    yield "\n".join(["| for example | what to do |", "| --- | --- |", *rows])


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


if __name__ == "__main__":
    print(text(), end="")
