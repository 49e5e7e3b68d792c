"""Which completions are compared: those of two files that belong together, or those of one with its references."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nearstep.common.errors import DataError, shorten
from nearstep.common.messages import PromptInput
from nearstep.common.telling import tell
from nearstep.config.judges import JudgedFiles
from nearstep.data.load import load_rows
from nearstep.data.table import Table, with_columns
from nearstep.judges.protocol import Pair

# Under which names other programs, and records of runs, keep the two.
PROMPT_COLUMNS = ("prompt", "query", "question")
COMPLETION_COLUMNS = ("completion", "response", "model_response")
SHOWN = 3  # rows that a message names


@dataclass(frozen=True)
class Judged:
    """One pair, where its texts stand, and the number of its prompt; `a` is response0."""

    pair: Pair
    places: tuple[str, str]
    prompt: int


@dataclass(frozen=True)
class CompletionRow:
    """A row of a file: its key, prompt and text, and where it stands."""

    key: str
    prompt: PromptInput
    text: str
    place: str
    row: Mapping[str, object]


def read_pairs(settings: JudgedFiles) -> list[Judged]:
    """The pairs in the order of the first file. Raises DataError for what cannot be read, or has no counterpart."""
    tables = _tables(settings)
    has_id = all("id" in table.columns for table in tables)
    sides = [_completions(table, by_id=has_id and len(tables) == 2) for table in tables]
    matched, alone = _with_references(sides[0], settings.references) if len(sides) == 1 else _matched(*sides)
    if alone and (settings.unmatched == "raise" or not matched):
        shown = "\n".join(f"  {text}" for text in alone[:SHOWN])
        more = f"\n  and {len(alone) - SHOWN:,} more" if len(alone) > SHOWN else ""
        remedy = "" if not matched else "\nunmatched = drop leaves them out."
        raise DataError(f"{len(alone):,} rows have no counterpart:\n{shown}{more}{remedy}")
    if alone:
        tell(f"{len(alone):,} rows have no counterpart and are left out; the first: {alone[0]}")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(_prompt_key(one.pair.prompt) for one in matched))}
    found = [Judged(one.pair, one.places, numbers[_prompt_key(one.pair.prompt)]) for one in matched]
    return found[: settings.limit]


def _tables(settings: JudgedFiles) -> list[Table]:
    """The files under our names of columns; each needs to have only its own of those that `columns` names."""
    loaded = [load_rows(name, split="train", config=None) for name in settings.files]
    known = {column for table in loaded for column in table.columns}
    if missing := [theirs for _, theirs in settings.columns if theirs not in known]:
        raise DataError(f"columns asks for {', '.join(map(repr, missing))}; there are only {', '.join(sorted(known))}")
    return [
        with_columns(table, {ours: theirs for ours, theirs in settings.columns if theirs in table.columns})
        for table in loaded
    ]


def _completions(table: Table, *, by_id: bool) -> list[CompletionRow]:
    prompt_column, completion_column = _column(table, PROMPT_COLUMNS), _column(table, COMPLETION_COLUMNS)
    found = []
    for number, row in enumerate(table.rows):
        prompt = row.get("input") if prompt_column == "prompt" and "prompt_ids" in row else row.get(prompt_column)
        place = f"{table.name}, {table.position(number)}"
        if not isinstance(prompt, str | list) or not prompt:
            raise DataError(f"{place}, column {prompt_column!r}: must be text or messages, got {shorten(prompt)}")
        text = _text(row.get(completion_column))
        if text is None:
            said = shorten(row.get(completion_column))
            raise DataError(
                f"{place}, column {completion_column!r}: must be text, or one assistant message, got {said}"
            )
        key = f"id {row.get('id')}" if by_id else _prompt_key(prompt)
        found.append(CompletionRow(key, prompt, text, place, row))
    return found


def _column(table: Table, names: Sequence[str]) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise DataError(
        f"{table.label}: no column {names[0]!r}, only {list(table.columns)}. Name it: --columns {names[0]}=THEIRS"
    )


def _matched(ours: Sequence[CompletionRow], theirs: Sequence[CompletionRow]) -> "_Found":
    """Rows with the same key, in the order in which it comes: several completions of a prompt meet one by one."""
    waiting: dict[str, list[CompletionRow]] = defaultdict(list)
    for one in theirs:
        waiting[one.key].append(one)
    matched, alone = [], []
    for one in ours:
        if not waiting[one.key]:
            alone.append(f"{one.place}: {shorten(one.key, 100)} is not in the other file, or not so often")
            continue
        other = waiting[one.key].pop(0)
        if _prompt_key(one.prompt) != _prompt_key(other.prompt):
            raise DataError(
                f"{one.place} and {other.place} have the same {one.key} and different prompts: "
                f"{shorten(one.prompt)} and {shorten(other.prompt)}"
            )
        matched.append(Judged(Pair(one.prompt, one.text, other.text), (one.place, other.place), 0))
    rest = (one for left in waiting.values() for one in left)
    alone += [f"{one.place}: {shorten(one.key, 100)} is not in the other file, or not so often" for one in rest]
    return matched, alone


def _with_references(ours: Sequence[CompletionRow], column: str | None) -> "_Found":
    assert column is not None
    matched, alone = [], []
    for one in ours:
        inside = one.row.get("columns")
        row = {**inside, **one.row} if isinstance(inside, Mapping) else one.row  # columns of a run's rollouts
        if column not in row:
            raise DataError(f"{one.place}: there is no column {column!r}, only {list(row)}")
        reference = _text(row[column])
        if reference is None:
            alone.append(f"{one.place}, column {column!r}: no text, but {shorten(row[column])}")
            continue
        matched.append(Judged(Pair(one.prompt, one.text, reference), (one.place, f"{one.place}, {column}"), 0))
    return matched, alone


_Found = tuple[list[Judged], list[str]]


def _text(value: object) -> str | None:
    """A text, or that of one message; of a list with nothing but one of these."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("content", value.get("text"))
    return value if isinstance(value, str) else None


def _prompt_key(prompt: PromptInput) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
