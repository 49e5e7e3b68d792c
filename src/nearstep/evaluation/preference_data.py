"""Which preferences a data set holds: pairs of answers, or the many answers of RewardBench 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from nearstep.common.errors import DataError, shorten
from nearstep.data.checks import text_or_messages
from nearstep.data.formats.recognise import HEAD_ROWS, recognise
from nearstep.data.pairs import PreferencePair, pairs_of
from nearstep.data.row_errors import BadValueError, bad_rows
from nearstep.data.table import Table
from nearstep.data.tokenise import PromptStyle
from nearstep.evaluation.answers import prompt_key
from nearstep.evaluation.scoring import TextPair
from nearstep.types import PromptInput

TIES = "Ties"
SUBSET = "subset"  # the column by which both RewardBenches group their rows


@dataclass(frozen=True)
class ScoredPair:
    """A better and a worse answer to one prompt, and the subset that the row belongs to, if any."""

    better: TextPair
    worse: TextPair
    prompt: int
    subset: str | None


@dataclass(frozen=True)
class ManyAnswers:
    """A row of RewardBench 2: right answers and wrong ones. `number` and `kind` are those of an id such as tied:4."""

    right: list[TextPair]
    wrong: list[TextPair]
    subset: str
    kind: str
    number: str


def is_rewardbench_2(table: Table) -> bool:
    """Whether rows hold lists of answers: `chosen` and `rejected` are lists of texts."""
    if not {"prompt", "chosen", "rejected", "id"} <= set(table.columns):
        return False
    return any(_texts(row.get("chosen")) for row in islice(table.rows, HEAD_ROWS))


def is_rewardbench_1(table: Table) -> bool:
    """Whether rows are pairs that are grouped by subsets."""
    return {"prompt", "chosen", "rejected", SUBSET} <= set(table.columns) and not is_rewardbench_2(table)


def holds_pairs(table: Table, dataset_format: str | None) -> bool:
    """Whether the rows are preference pairs."""
    found = recognise(table.columns, list(islice(table.rows, HEAD_ROWS)))
    return not is_rewardbench_2(table) and (
        (found is not None and found.pairs is not None) or dataset_format is not None
    )


def read_pairs(
    table: Table, dataset_format: str | None, on_bad_row: Literal["raise", "drop"], style: PromptStyle
) -> tuple[list[ScoredPair], list[str]]:
    """Every pair that says which answer is better, and what is to be told. Raises DataError for bad rows."""
    found = pairs_of(table, dataset_format=dataset_format, on_bad_row=on_bad_row)
    places = {f"{table.label}, {table.position(number)}": number for number in range(len(table))}
    prompts: dict[str, int] = {}
    pairs = []
    for each in found.pairs:
        if each.preference != 0.5:
            pair, number = _better_first(each), places.get(each.place)
            prompt = prompts.setdefault(prompt_key(pair.prompt), len(prompts))
            pairs.append(_pair(pair, {} if number is None else table.rows[number], prompt, style))
    ties = sum(pair.preference == 0.5 for pair in found.pairs)
    notes = [f"{ties} pairs are labelled as ties, which have no better answer."] if ties else []
    return pairs, [*found.sentences(), *notes]


def read_rewardbench_2(table: Table, style: PromptStyle) -> list[ManyAnswers]:
    """The rows of a RewardBench 2 file. Raises DataError naming those that are none."""
    found, bad = [], []
    for number, row in enumerate(table.rows):
        try:
            found.append(_many(row, style))
        except BadValueError as error:
            bad.append(table.bad_row(number, error))
        except ValueError as error:
            place = table.position(number)
            raise DataError(f"{table.label}, {place}: {error}") from error
    if bad:
        raise bad_rows(table.label, bad, len(table))
    return found


def _better_first(pair: PreferencePair) -> PreferencePair:
    return pair if pair.preference > 0.5 else replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def _pair(pair: PreferencePair, row: Mapping[str, object], prompt: int, style: PromptStyle) -> ScoredPair:
    subset, columns = row.get(SUBSET), _columns(row)
    asked = shown_as(pair.prompt, style)
    better, worse = (TextPair(asked, answer, columns) for answer in (pair.chosen, pair.rejected))
    return ScoredPair(better, worse, prompt, subset if isinstance(subset, str) else None)


def shown_as(prompt: PromptInput, style: PromptStyle) -> PromptInput:
    """A prompt under a style of prompts: under `chat` a text is what a user says."""
    return [{"role": "user", "content": prompt}] if style == "chat" and isinstance(prompt, str) else prompt


def _columns(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}


def _many(row: Mapping[str, object], style: PromptStyle) -> ManyAnswers:
    prompt, subset = text_or_messages(row, "prompt"), row.get(SUBSET)
    right, wrong = _texts(row.get("chosen")), _texts(row.get("rejected"))
    if not right or not wrong:
        raise ValueError(
            f"chosen and rejected must be lists of texts, got {shorten(row.get('chosen'))} and "
            f"{shorten(row.get('rejected'))}"
        )
    for name, count in (("num_correct", len(right)), ("total_completions", len(right) + len(wrong))):
        if row.get(name) is not None and row[name] != count:
            raise ValueError(f"{name} is {shorten(row[name])}, and there are {count}")
    if not isinstance(subset, str):
        raise ValueError(f"subset must be text, got {shorten(subset)}")
    kind, _, number = str(row.get("id")).partition(":")
    if subset == TIES and kind not in ("ref", "tied"):
        raise ValueError(f"the id of a row of the subset Ties is ref:N or tied:N, got {shorten(row.get('id'))}")
    prompt, columns = shown_as(prompt, style), _columns(row)
    return ManyAnswers(
        [TextPair(prompt, text, columns) for text in right],
        [TextPair(prompt, text, columns) for text in wrong],
        subset,
        kind,
        number,
    )


def _texts(value: object) -> list[str]:
    """The texts of a list of texts; none of anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [str(entry) for entry in value] if value and all(isinstance(entry, str) for entry in value) else []
