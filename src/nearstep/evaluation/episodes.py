"""How a file of prompts and completions, or the rollouts of a run, become what rewards are given in training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError, shorten
from nearstep.data.encode import encode_prompts
from nearstep.data.load import load_rows
from nearstep.data.mix import PromptMix
from nearstep.data.table import Table
from nearstep.types import Prompts, Rollout

# What a line of rollouts.jsonl has and no other file does.
RECORD_COLUMNS = ("update", "episode", "input", "prompt_ids", "completion_ids", "finished", "columns")


@dataclass(frozen=True)
class Episodes:
    """Some rows that are scored together, and the number of the first in its file, from 0."""

    first: int
    prompts: Prompts
    rollout: Rollout
    logged: list[float | None]  # the total that a run recorded; None where there is none


def read_episodes(name: str, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> tuple[Table, list[Episodes]]:
    """The rows of a file, `batch_size` at a time; those of a run as its updates had them together.

    Raises DataError naming the row and column of what cannot be scored.
    """
    table = load_rows(name, split="train", config=None)
    if all(column in table.columns for column in RECORD_COLUMNS):
        return table, list(_of_a_run(table))
    if "completion" not in table.columns:
        raise DataError(
            f"{table.label}: it has no column 'completion', only {list(table.columns)}. Give prompts with their "
            "completions, or the rollouts.jsonl of a run."
        )
    return table, list(_of_texts(table, tokenizer, batch_size))


def _of_a_run(table: Table) -> Iterator[Episodes]:
    """Rewards see the ids that the run recorded, in the batches in which the run scored them."""
    numbers = range(len(table))
    for _, group in groupby(numbers, key=lambda number: table.rows[number]["update"]):
        rows = list(group)
        records = [table.rows[number] for number in rows]
        names = dict.fromkeys(name for record in records for name in _mapping(record["columns"]))
        prompts = Prompts(
            ids=[_ids(record["prompt_ids"], table, number) for number, record in zip(rows, records, strict=True)],
            inputs=[record["input"] for record in records],  # type: ignore[misc]
            columns={name: [_mapping(record["columns"]).get(name) for record in records] for name in names},
            episodes=[int(record["episode"]) for record in records],  # type: ignore[call-overload]
        )
        said = [_ids(record["completion_ids"], table, number) for number, record in zip(rows, records, strict=True)]
        finished = [bool(record["finished"]) for record in records]
        logged = [record.get("total_score") for record in records]
        yield Episodes(rows[0], prompts, rollout_of(prompts.ids, said, finished), logged)  # type: ignore[arg-type]


def _of_texts(table: Table, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Iterator[Episodes]:
    """Prompts become ids as in training; a completion is its text's ids, with EOS behind one that has ended."""
    # Completions are what is scored here: they must not reach rewards as the data set's own answers.
    as_prompts = "prompt" if "prompt" in table.columns else None
    encoded = PromptMix((encode_prompts(table, tokenizer, vocab_size=len(tokenizer), dataset_format=as_prompts),))
    for first in range(0, len(table), batch_size):
        numbers = range(first, min(first + batch_size, len(table)))
        prompts = encoded.take(numbers, numbers)
        ended = [_finished(table, number, tokenizer) for number in numbers]
        said = [
            [*_completion_ids(table, number, tokenizer), *([tokenizer.eos_token_id] if end else [])]
            for number, end in zip(numbers, ended, strict=True)
        ]
        yield Episodes(first, prompts, rollout_of(prompts.ids, said, ended), [None] * len(numbers))


def _finished(table: Table, number: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """The column `finished`, else yes; without an EOS nothing can have ended."""
    value = table.rows[number].get("finished")
    if value is None:
        return tokenizer.eos_token_id is not None
    if not isinstance(value, bool):
        raise DataError(_place(table, number, "finished") + f"must be true or false, got {shorten(value)}")
    if value and tokenizer.eos_token_id is None:
        raise DataError(_place(table, number, "finished") + "is true, and the tokenizer has no EOS to end with")
    return value


def _completion_ids(table: Table, number: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    completion = table.rows[number].get("completion")
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise DataError(
            _place(table, number, "completion") + f"must be text, or one assistant message, got {shorten(completion)}"
        )
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def rollout_of(prompts: Sequence[list[int]], said: Sequence[list[int]], finished: Sequence[bool]) -> Rollout:
    """A rollout as rewards look at it: its log-probs are not known and stand as 0."""
    rows = list(zip(prompts, said, strict=True))
    is_action = [chosen for prompt, ids in rows for chosen in [False] * len(prompt) + [True] * len(ids)]
    return Rollout(
        tokens=torch.tensor([token for prompt, ids in rows for token in prompt + ids], dtype=torch.long),
        is_action=torch.tensor(is_action, dtype=torch.bool),
        row_lengths=torch.tensor([len(prompt) + len(ids) for prompt, ids in rows]),
        logprobs=torch.zeros(sum(is_action)),
        finished=torch.tensor(list(finished)),
        policy_version=torch.zeros(len(rows), dtype=torch.long),
    )


def _ids(value: object, table: Table, number: int) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise DataError(_place(table, number, "prompt_ids or completion_ids") + f"no token ids: {shorten(value)}")
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _place(table: Table, number: int, column: str) -> str:
    return f"{table.label}, {table.position(number)}, column {column!r}: "
