"""Rows that are messages of conversation trees, as OpenAssistant's oasst1 and oasst2 are.

A prompt is the path from a root to a prompter's message. Where that message has several ranked replies, every two of
them are a preference pair; rank 0 is the best. Deleted messages and what follows them are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from nearstep.data.checks import text_of, value_of
from nearstep.data.formats.format import Format, PreferencePair, PromptRow, Row
from nearstep.data.formats.preferences import checked_pair, number_of
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.data.table import Table
from nearstep.types import Message

GATHERED = ("path", "replies", "broken")  # what a gathered row has beside the columns of its message
ROLES = {"prompter": "user", "assistant": "assistant"}
_WHOLE = "Give every message of a tree, each with an id of its own."


@dataclass(frozen=True)
class _Trees:
    """All messages of a table: by their id, and the numbers of the rows that answer each."""

    by_id: Mapping[str, Row]
    replies: Mapping[str, list[Row]]
    twice: frozenset[str]

    @staticmethod
    def of(table: Table) -> "_Trees":
        by_id: dict[str, Row] = {}
        replies: dict[str, list[Row]] = {}
        twice = set()
        for row in table.rows:
            name, parent = row.get("message_id"), row.get("parent_id")
            if isinstance(name, str):
                twice.update({name} & by_id.keys())
                by_id[name] = row
            if isinstance(parent, str):
                replies.setdefault(parent, []).append(row)
        return _Trees(by_id, replies, frozenset(twice))

    def path(self, row: Row) -> tuple[list[Row], str]:
        """The messages from the root to `row`, and what is wrong with them: nothing if it is empty."""
        path, seen = [row], {row.get("message_id")}
        if row.get("message_id") in self.twice:
            return path, f"the message_id {row['message_id']!r} stands there more than once"
        while isinstance(parent := path[0].get("parent_id"), str):
            if parent not in self.by_id:
                return path, f"the parent {parent!r} is not in the data set"
            if parent in seen:
                return path, f"the parent {parent!r} follows itself"
            path.insert(0, self.by_id[parent])
            seen.add(parent)
        return path, ""

    def is_deleted(self, row: Row) -> bool:
        """Whether the message or one before it was deleted."""
        return any(message.get("deleted") is True for message in self.path(row)[0])


def _prompt_paths(table: Table) -> Table:
    """One row for each message that is not the assistant's, with its path."""
    trees = _Trees.of(table)
    chosen = [
        (number, row)
        for number, row in enumerate(table.rows)
        if row.get("role") != "assistant" and not trees.is_deleted(row)
    ]
    return _paths(table, trees, chosen, {})


def _pair_paths(table: Table) -> Table:
    """One row for each message with two or more ranked replies, with its path and these."""
    trees = _Trees.of(table)
    ranked = {name: [row for row in rows if _is_ranked(row)] for name, rows in trees.replies.items()}
    chosen = [
        (number, row)
        for number, row in enumerate(table.rows)
        if len(ranked.get(str(row.get("message_id")), ())) > 1 and not trees.is_deleted(row)
    ]
    return _paths(table, trees, chosen, ranked)


def _paths(table: Table, trees: _Trees, chosen: list[tuple[int, Row]], ranked: Mapping[str, list[Row]]) -> Table:
    rows: list[Row] = []
    for _, row in chosen:
        path, problem = trees.path(row)
        replies = ranked.get(str(row.get("message_id")), [])
        rows.append({**row, "path": path, "replies": replies, "broken": problem})
    return table.of_rows(rows, [table.position(number) for number, _ in chosen])


def _is_ranked(row: Row) -> bool:
    return row.get("role") == "assistant" and row.get("rank") is not None and row.get("deleted") is not True


def _prompt(row: Row) -> PromptRow:
    return PromptRow(_chat(row))


def _pairs(row: Row) -> list[PreferencePair]:
    prompt = _chat(row)
    replies = row["replies"]
    assert isinstance(replies, list)
    in_order = sorted(replies, key=_rank)
    answers = [(_rank(reply), [_message(reply)]) for reply in in_order]
    return [
        checked_pair(PreferencePair(prompt, better, worse), "text", "text")
        for (first, better), (second, worse) in combinations(answers, 2)
        if first < second
    ]


def _rank(row: Row) -> float:
    return number_of(row, "rank")


def _chat(row: Row) -> list[Message]:
    """The path as a chat, the turns of which must alternate."""
    value_of(row, "message_id")
    if row["broken"]:
        raise BadValueError(RowError.THREAD, "parent_id", row.get("parent_id"), str(row["broken"]), _WHOLE)
    path = row["path"]
    assert isinstance(path, list)
    chat = [_message(message) for message in path]
    for number, message in enumerate(chat):
        if message["role"] != ("user", "assistant")[number % 2]:
            problem = f"message {number + 1} of {len(chat)} of the path is from {path[number]['role']!r}"
            remedy = "A tree begins with the prompter, and its turns alternate."
            raise BadValueError(RowError.ROLE, "role", path[number]["role"], problem, remedy)
    return chat


def _message(row: Row) -> Message:
    role = value_of(row, "role")
    if role not in ROLES:
        problem = f"expected one of {', '.join(ROLES)}"
        raise BadValueError(RowError.ROLE, "role", role, problem, "Correct the role.")
    return {"role": ROLES[str(role)], "content": text_of(row, "text")}


OASST = Format(
    "oasst",
    ("text", "role", "parent_id"),
    _prompt,
    _pairs,
    prompt_rows=_prompt_paths,
    pair_rows=_pair_paths,
    gathers=True,
)
