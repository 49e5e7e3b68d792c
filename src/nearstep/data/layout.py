"""Where the prompts of a table stand: in `input_ids`, or in what its format makes of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from nearstep.common.errors import DataError
from nearstep.data.formats.chats import MESSAGES
from nearstep.data.formats.format import Format
from nearstep.data.formats.plain import PROMPT, QUERY
from nearstep.data.formats.recognise import HEAD_ROWS, format_named, recognise, with_reference
from nearstep.data.table import Table

# Columns that people often mean, for the remedy.
GUESSES = ("question", "problem", "text", "instruction", "input", "query", "post", "content")


@dataclass(frozen=True)
class Layout:
    """`format` is that of the prompts which rewards and people see; None where there are token ids and nothing else.

    Token ids are made of the same prompts, unless the data set `has_ids`.
    """

    format: Format | None
    has_ids: bool

    @property
    def ids_column(self) -> str:
        """The column that messages about a prompt's ids name."""
        if self.has_ids or self.format is None:
            return "input_ids"
        return self.format.column

    @property
    def name(self) -> str:
        """As the user reads it."""
        shown = "" if self.format is None else self.format.name
        return " and ".join(part for part in ("input_ids" if self.has_ids else "", shown) if part)

    def passed_on(self, columns: Sequence[str]) -> list[str]:
        """The columns that rewards get beside the prompt; `reference` where the format finds answers in the data."""
        taken = {"prompt", "input_ids", "attention_mask", *(self.format.takes if self.format else ())}
        passed = [name for name in columns if name not in taken]
        return [*passed, "reference"] if self.gives_reference(columns) else passed

    def gives_reference(self, columns: Sequence[str]) -> bool:
        """Whether there are references that the data set does not name so itself."""
        return self.format is not None and self.format.has_reference and "reference" not in columns


def layout_of(table: Table, dataset_format: str | None = None) -> Layout:
    """How prompts stand in a table, told by its columns and first rows.

    Raises `DataError` where no format fits, `ConfigError` for an unknown one.
    """
    columns, head = table.columns, list(islice(table.rows, HEAD_ROWS))
    has_ids = "input_ids" in columns
    if dataset_format is not None:
        return Layout(with_reference(format_named(dataset_format), head), has_ids)
    if has_ids:
        # Ids beside other columns were made by somebody: what else stands there may be no prompt at all.
        plain = next((found for found in (PROMPT, MESSAGES, QUERY) if found.column in columns), None)
        return Layout(plain, True)
    found = recognise(columns, head)
    if found is None:
        near = next((name for name in GUESSES if name in columns), columns[0] if columns else "…")
        raise DataError(
            f"{table.label}: it has no column 'prompt', 'messages', 'query' or 'input_ids', and its columns are those "
            f"of no known format, only {list(columns)}. Say which one holds the prompts, as in --columns prompt={near}."
        )
    return Layout(found, False)
