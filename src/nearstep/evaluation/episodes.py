"""How a file of prompts and completions, or the rollouts of a run, become what rewards are given in training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError, shorten
from nearstep.data.encode import encode_prompts
from nearstep.data.load import load_rows
from nearstep.data.mix import PromptMix
from nearstep.data.table import Table
from nearstep.models.stop_tokens import reply_end
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


@dataclass(frozen=True)
class EpisodeFile:
    """The rows of a file, all of them checked, and its episodes, which are made batch by batch as they are asked for.

    `columns` are those that rewards get beside prompts.
    """

    table: Table
    columns: Sequence[str]
    batches: Callable[[], Iterator[Episodes]]
    ends_known: bool  # whether it says which completions have ended


def read_episodes(name: str, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> EpisodeFile:
    """The rows of a file, `batch_size` at a time; those of a run as its updates had them together.

    Raises DataError naming the row and column of what cannot be scored.
    """
    table = load_rows(name, split="train", config=None)
    if all(column in table.columns for column in RECORD_COLUMNS):
        table = _last_segments(table)
        columns: dict[str, None] = {}
        for number, record in enumerate(table.rows):
            columns.update(dict.fromkeys(_mapping(record.get("columns"))))
            for column in ("prompt_ids", "completion_ids"):
                _ids(record.get(column), table, number)
        return EpisodeFile(table, list(columns), lambda: _of_a_run(table, list(columns)), ends_known=True)
    if "completion" not in table.columns:
        raise DataError(
            f"{table.label}: it has no column 'completion', only {list(table.columns)}. Give prompts with their "
            "completions, or the rollouts.jsonl of a run."
        )
    for number, row in enumerate(table.rows):
        _finished(row, table, number, tokenizer)
        _completion(row, table, number)
    # Completions are what is scored here: they must not reach rewards as the data set's own answers.
    as_prompts = "prompt" if "prompt" in table.columns else None
    encoded = PromptMix((encode_prompts(table, tokenizer, vocab_size=len(tokenizer), dataset_format=as_prompts),))
    ends_known = "finished" in table.columns
    return EpisodeFile(table, encoded.columns, lambda: _of_texts(table, encoded, tokenizer, batch_size), ends_known)


def _last_segments(table: Table) -> Table:
    """The records that have a score: of an episode with several rows the last."""
    if "segment" not in table.columns:
        return table
    records = list(table.rows)
    last = {(record["update"], record["episode"]): number for number, record in enumerate(records)}
    kept = sorted(last.values())
    return table.of_rows([records[number] for number in kept], [table.position(number) for number in kept])


def _of_a_run(table: Table, names: Sequence[str]) -> Iterator[Episodes]:
    """Rewards see the ids that the run recorded, in the batches in which the run scored them."""
    for _, group in groupby(enumerate(table.rows), key=lambda numbered: numbered[1]["update"]):
        rows = list(group)
        records = [record for _, record in rows]
        prompts = Prompts(
            ids=[_ids(record["prompt_ids"], table, number) for number, record in rows],
            inputs=[record["input"] for record in records],  # type: ignore[misc]
            columns={name: [_mapping(record["columns"]).get(name) for record in records] for name in names},
            episodes=[int(record["episode"]) for record in records],  # type: ignore[call-overload]
        )
        said = [_ids(record["completion_ids"], table, number) for number, record in rows]
        finished = [bool(record["finished"]) for record in records]
        logged = [record.get("total_score") for record in records]
        yield Episodes(rows[0][0], prompts, rollout_of(prompts.ids, said, finished), logged)  # type: ignore[arg-type]


def _of_texts(
    table: Table, encoded: PromptMix, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[Episodes]:
    """A completion is its text's ids, with the end that a policy writes behind one that has ended."""
    for first in range(0, len(table), batch_size):
        numbers = range(first, min(first + batch_size, len(table)))
        prompts, rows = encoded.take(numbers, numbers), [table.rows[number] for number in numbers]
        ended = [_finished(row, table, number, tokenizer) for number, row in zip(numbers, rows, strict=True)]
        texts = [_completion(row, table, number) for number, row in zip(numbers, rows, strict=True)]
        yield Episodes(first, prompts, written_rollout(prompts, texts, ended, tokenizer), [None] * len(numbers))


def written_rollout(
    prompts: Prompts, texts: Sequence[str], finished: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    """Texts as if a policy had written them: their ids, and behind one that is `finished` the end it would write."""
    eos, mark = tokenizer.eos_token_id, reply_end(tokenizer)
    ends = [eos if isinstance(shown, str) or mark is None else mark for shown in prompts.inputs]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    said = [[*text, *([end] if done else [])] for text, end, done in zip(ids, ends, finished, strict=True)]
    return rollout_of(prompts.ids, said, finished)


def _finished(row: Mapping[str, object], table: Table, number: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """The column `finished`, else yes; without an EOS nothing can have ended."""
    value = row.get("finished")
    if value is None:
        return tokenizer.eos_token_id is not None
    if isinstance(value, str) and value.lower() in ("true", "false"):  # CSV knows text alone
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise DataError(_place(table, number, "finished") + f"must be true or false, got {shorten(value)}")
    if value and tokenizer.eos_token_id is None:
        raise DataError(_place(table, number, "finished") + "is true, and the tokenizer has no EOS to end with")
    return value


def _completion(row: Mapping[str, object], table: Table, number: int) -> str:
    completion = row.get("completion")
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise DataError(
            _place(table, number, "completion") + f"must be text, or one assistant message, got {shorten(completion)}"
        )
    return completion


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
