"""The table of families in docs/families.md, from what every family does now: python -m tests.families --write."""

import argparse
import contextlib
import io
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import transformers

from nearstep.common.errors import ModelError
from nearstep.models.forward.layout import PaddedRows
from tests.families.checks import roles_of
from tests.families.test_families import FAMILIES
from tests.families.tiny_families import NOT_CAUSAL, NOT_TRAINED, WITHOUT

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
MARK = "<!-- written by `python -m tests.families --write` -->"


def line(kind: str) -> str:
    """One family in the table."""
    print(kind, flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            roles, layout = roles_of(kind, Path(folder))
    except (AssertionError, ModelError, RuntimeError, TypeError, ValueError) as error:
        return f"| {kind} | none | | {type(error).__name__}: {' '.join(str(error).split())[:200]} |"
    if not isinstance(layout, PaddedRows):
        return f"| {kind} | {roles} | packed | |"
    generation = "its own cache" if layout.own_cache else "computing anew"
    return f"| {kind} | {roles} | padded, generates from {generation} | {layout.why} |"


def table() -> str:
    """The whole table."""
    transformers.logging.set_verbosity_error()
    refused = {**dict.fromkeys(NOT_CAUSAL, "a token sees those after it"), **NOT_TRAINED}
    lines = [
        MARK,
        "",
        f"Proved with transformers {transformers.__version__} on {datetime.now(UTC):%Y-%m-%d}.",
        "",
        "| family | roles | how its rows run | why not packed |",
        "|---|---|---|---|",
        *map(line, sorted(FAMILIES)),
        *(f"| {kind} | refused | | {why} |" for kind, why in sorted(refused.items())),
        *(f"| {kind} | not tried | | {why} |" for kind, why in sorted(WITHOUT.items())),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/families.md")
    options = parser.parse_args()
    made = table()
    if options.write:
        PAGE.write_text(PAGE.read_text().partition(MARK)[0] + made)
    else:
        print(made)
