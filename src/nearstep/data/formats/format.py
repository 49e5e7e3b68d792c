"""What a format of a data set is: how one of its rows becomes a prompt, and how it becomes preference pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from nearstep.data.table import Table
from nearstep.types import Message, PromptInput

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class PromptRow:
    """What a row gives to PPO.

    `reference` is the answer that the data set itself holds; `shorter` are versions of a text prompt with less and
    less of it, for prompts that are too long.
    """

    prompt: PromptInput
    reference: str | None = None
    shorter: Sequence[str] = ()


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better one first: all three texts, or all three messages.

    A text is continued by its answer as it stands, without anything between; messages of an answer follow those of
    the prompt. `margin` is by how much the one is better, where the data set says so; `preference` is the probability
    that it is, ½ for a tie; `place` is where the pair stands, for messages to the user.
    """

    prompt: PromptInput
    chosen: PromptInput
    rejected: PromptInput
    margin: float | None = None
    preference: float = 1.0
    place: str = ""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)  # of its row, for the chat template


def _as_they_stand(table: Table) -> Table:
    return table


@dataclass(frozen=True)
class Format:
    """One shape of data sets. Rows are converted one by one; each conversion raises `BadValueError` for a bad row.

    `takes` are the columns that become the prompt and are not passed on to rewards, the first of them the one that
    messages name. `pairs` is None where rows hold no preferences. `prompt_rows` and `pair_rows` gather rows first,
    where a prompt or pair is spread over several.
    """

    name: str
    takes: tuple[str, ...]
    prompt: Callable[[Row], PromptRow]
    pairs: Callable[[Row], list[PreferencePair]] | None = None
    has_reference: bool = False
    prompt_rows: Callable[[Table], Table] = _as_they_stand
    pair_rows: Callable[[Table], Table] = _as_they_stand
    gathers: bool = False  # rows cannot be converted before all are there

    @property
    def column(self) -> str:
        """The column that messages about a prompt name."""
        return self.takes[0]


def answer_text(value: object) -> str | None:
    """The text of an answer that is text or messages; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        content = value[-1].get("content")
        return content if isinstance(content, str) else None
    return None


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items, or characters, two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def shared_start(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two chats share before the answers part: up to the last one that can be answered."""
    same = common_length(first, second)
    while same and first[same - 1].get("role") not in ("user", "tool"):
        same -= 1
    return same
