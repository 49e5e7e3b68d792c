"""Every name that is read is defined somewhere: also in code that only a GPU, or TRL's environment, would run.

ruff's F821 cannot say so here, since it takes the shapes in jaxtyping's annotations for names.
"""

import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KNOWN = {*dir(builtins), "__file__", "__name__", "__doc__", "__class__", "__path__", "__spec__"}


def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from tables(child)


def unknown_names(source: str) -> set[str]:
    """Names that are read as globals and that neither the file nor Python defines."""
    whole = symtable.symtable(source, "file", "exec")
    defined = {symbol.get_name() for symbol in whole.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    symbols = [symbol for table in tables(whole) for symbol in table.get_symbols()]
    assigned = {symbol.get_name() for symbol in symbols if symbol.is_declared_global() and symbol.is_assigned()}
    read = {symbol.get_name() for symbol in symbols if symbol.is_referenced() and symbol.is_global()}
    own = {symbol.get_name() for symbol in whole.get_symbols() if symbol.is_referenced()}
    return (read | own) - defined - assigned - KNOWN


def test_by_hand():
    source = "import a\nb: int = 1\ndef f(c):\n    d = [e for e in c]\n    return a, b, d, f, print, missing\n"
    assert unknown_names(source) == {"missing"}
    assert unknown_names("x = lost\n") == {"lost"}


@pytest.mark.parametrize("room", ["src", "tests", "benchmarks", "examples"])
def test_every_name_is_known(room):
    found = {str(file.relative_to(REPOSITORY)): unknown_names(file.read_text(encoding="utf-8"))
             for file in sorted((REPOSITORY / room).rglob("*.py"))}  # fmt: skip
    assert {file: names for file, names in found.items() if names} == {}
