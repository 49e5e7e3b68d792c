"""The parts of docs/rewards_builtin.md that are made from what the built-in rewards say of themselves.

Each stands between two comments. They are made anew by
`python -m tests.rewards.builtin.docs_page docs/rewards_builtin.md`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nearstep.config.options import option_of
from nearstep.rewards.builtin.describe import measures_of, summary_of
from nearstep.rewards.builtin.metadata import BuiltIn, name_of, parameter_entry, parameters
from nearstep.rewards.builtin.other_names import COUNTERPARTS
from nearstep.rewards.builtin.table import GROUPS


def renewed(page: str) -> str:
    """The page with its made parts as they should be. Raises KeyError for a part that is unknown."""
    made = {"overview": _overview, "rewards": _rewards, "other names": _other_names}
    return re.sub(
        r"(<!-- made: (.+?) -->\n).*?(<!-- end -->\n)",
        lambda found: "".join([found[1], *(f"{line}\n" for line in made[found[2]]()), found[3]]),
        page,
        flags=re.DOTALL,
    )


def _overview() -> Iterator[str]:
    yield "| name | range | what it measures | needs |"
    yield "|---|---|---|---|"
    for kinds in GROUPS.values():
        for kind in kinds:
            metadata, name = kind.metadata, name_of(kind)
            yield f"| [{name}](#{name}) | {metadata.range} | {_safe(summary_of(kind))} | {metadata.needs or '–'} |"


def _rewards() -> Iterator[str]:
    for group, kinds in GROUPS.items():
        yield from ("", f"## {group}")
        for kind in kinds:
            yield from _one(kind)
    yield ""


def _one(kind: type[BuiltIn]) -> Iterator[str]:
    metadata = kind.metadata
    extra = f" Extra `{metadata.extra}`." if metadata.extra else ""
    yield from ("", f"### {name_of(kind)}", "", _safe(measures_of(kind).replace("\n", " ")), "")
    yield f"Range {metadata.range}. Needs {metadata.needs or 'nothing'}.{extra}"
    yield f"Gamed: {_safe(metadata.gaming)}"
    if parameters(kind):
        yield ""
    yield from (f"- `{parameter_entry(p)}` {_safe(option_of(p).help)}" for p in parameters(kind))


def _other_names() -> Iterator[str]:
    yield "| there | here | what differs, or why |"
    yield "|---|---|---|"
    for name, counterpart in COUNTERPARTS.items():
        here = ", ".join(f"`{spec}`" for spec in counterpart.here) or "none"
        yield f"| {name} | {here} | {counterpart.why} |"


def _safe(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.replace("\\", "\\\\").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
