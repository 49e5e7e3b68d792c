"""How tables and lines fit a screen of any width: a number is whole or in the next line, never cut at the edge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2  # cells between columns, and between pieces of a line


@dataclass(frozen=True)
class Column:
    """The head of a column and its cells from top to bottom."""

    head: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """Cells that its longest number, and its longest word of the head, take."""
        words = [*self.cells, *self.head.split()]
        return max(map(cell_len, words), default=0)


def fitting_tables(first: Column, columns: Sequence[Column], width: int) -> list[Table]:
    """One table, or where it would be wider than `width` several below each other, each beginning with `first`."""
    room, groups, used = width - first.width, list[list[Column]](), width
    for column in columns:
        if used + GAP + column.width > room:
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += GAP + column.width
    return [_table([first, *group]) for group in groups] or [_table([first])]


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
    for column in columns:
        table.add_column(Text(column.head), justify=column.justify, width=column.width, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def flowing(pieces: Sequence[Text], width: int) -> Iterator[Text]:
    """The pieces in lines of at most `width` cells; a piece that is longer than a line is folded, none is cut."""
    line = Text()
    for piece in pieces:
        if line.cell_len and line.cell_len + GAP + piece.cell_len > width:
            yield line
            line = Text()
        line = Text.assemble(line, " " * GAP if line.cell_len else "", piece)
    if line.cell_len:
        yield line
