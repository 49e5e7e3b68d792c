"""How prompts that `nearstep prepare` has tokenised are opened: checked against the policy, never tokenised again."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, DataError
from nearstep.data.fingerprint import tokenizer_fingerprint
from nearstep.data.manifest import Manifest, Prepared
from nearstep.data.prompts import PromptReport, PromptSet
from nearstep.data.reader import Counts, PromptReader
from nearstep.data.row_errors import BadRow, BadValueError, RowError, bad_rows
from nearstep.data.table import Table
from nearstep.data.templates import style_of
from nearstep.data.tokenise import PromptStyle


def check_prepared(manifest: Manifest, tokenizer: PreTrainedTokenizerBase, style: PromptStyle, label: str) -> list[str]:
    """Refuse prompts that were prepared for another tokenizer or in another form; what else the user should know.

    Raises DataError or ConfigError.
    """
    if tokenizer_fingerprint(tokenizer) != manifest.fingerprint:
        raise DataError(
            f"{label}: it was prepared with the tokenizer {manifest.tokenizer!r} ({manifest.tokenizer_class}), and the "
            "policy's makes other ids of the same texts. Prepare the data again with the policy's tokenizer."
        )
    if style != "none" and style != style_of(manifest.prompt_type):
        raise ConfigError(
            f"prompt_type = {style}, and {label} was prepared with {manifest.prompt_type}: leave it out, or prepare "
            "the data again"
        )
    if manifest.chats and manifest.chat_template != tokenizer.chat_template:
        return [
            "The chats were prepared under another chat template than the tokenizer has now, and the policy is saved "
            f"with the latter. They were prepared with prompt_type {manifest.prompt_type}."
        ]
    return []


def prepared_prompts(
    table: Table, prepared: Prepared, reader: PromptReader, on_bad_row: Literal["raise", "drop"]
) -> PromptSet:
    """The prompts as they were written; only vocabulary and length are looked at.

    Raises `DataError` naming rows, as for prompts that are tokenised now.
    """
    notes = check_prepared(prepared.manifest, reader.tokenizer.tokenizer, reader.tokenizer.style, table.label)
    tokens, lengths = _flat(prepared.dataset)
    is_bad = _outside_vocabulary(reader, tokens, lengths)
    bad = [_checked(table, reader, row) for row in numpy.flatnonzero(is_bad).tolist()]
    limit = int(lengths.max()) if reader.max_prompt_length is None else reader.max_prompt_length
    is_long = ~is_bad & (lengths > limit)
    if reader.on_long_prompt == "error":
        bad += [_too_long(table, row, int(lengths[row]), limit) for row in numpy.flatnonzero(is_long).tolist()]
    if bad and (on_bad_row == "raise" or len(bad) == len(table)):
        raise bad_rows(table.label, bad, len(table))
    cuts = reader.on_long_prompt == "cut_left"
    kept = ~is_bad if cuts else ~is_bad & ~is_long
    if not kept.any():
        raise DataError(f"{table.label}: all {len(table)} prompts are longer than {limit} tokens.")
    long = int(is_long.sum())
    counts = Counts(len(table), Counter(row.row_error for row in bad), cut=long if cuts else 0)
    counts.row_errors[RowError.LONG] += long if reader.on_long_prompt == "drop" else 0
    notes = [_told(prepared.manifest), *notes]
    report = PromptReport(counts, reader.layout, reader.max_prompt_length, tuple(bad), tuple(notes))
    rows = numpy.flatnonzero(kept)
    if not kept.all() or is_long.any():
        tokens = _last_tokens(tokens, numpy.cumsum(lengths)[rows], numpy.minimum(lengths[rows], limit))
    ends = torch.from_numpy(numpy.cumsum(numpy.minimum(lengths[rows], limit)))
    return PromptSet(table, reader, torch.from_numpy(rows), torch.from_numpy(tokens), ends, report)


def _flat(dataset: Any) -> tuple[NDArray[numpy.int32], NDArray[numpy.int64]]:
    """The tokens of all rows back to back, and the number of each row's."""
    import pyarrow.compute  # type: ignore[import-untyped]

    pieces = dataset.data.column("input_ids").chunks
    tokens = numpy.concatenate([piece.flatten().to_numpy().astype(numpy.int32, copy=False) for piece in pieces])
    lengths = numpy.concatenate([pyarrow.compute.list_value_length(piece).to_numpy() for piece in pieces])
    return tokens, lengths.astype(numpy.int64)


def _last_tokens(
    tokens: NDArray[numpy.int32], ends: NDArray[numpy.int64], lengths: NDArray[numpy.int64]
) -> NDArray[numpy.int32]:
    """The tokens of some rows, of each so many before its end."""
    return numpy.concatenate([tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)])


def _outside_vocabulary(
    reader: PromptReader, tokens: NDArray[numpy.int32], lengths: NDArray[numpy.int64]
) -> NDArray[numpy.bool_]:
    """Which rows have ids that the policy does not know."""
    wrong = numpy.flatnonzero((tokens < 0) | (tokens >= reader.tokenizer.vocab_size))
    is_bad = numpy.zeros(len(lengths), dtype=bool)
    is_bad[numpy.searchsorted(numpy.cumsum(lengths), wrong, side="right")] = True
    return is_bad


def _checked(table: Table, reader: PromptReader, row: int) -> BadRow:
    ids: Sequence[int] = table.rows[row]["input_ids"]  # type: ignore[assignment]
    try:
        reader.tokenizer.check(ids, "input_ids", ids)
    except BadValueError as error:
        return table.bad_row(row, error)
    raise AssertionError(f"row {row} was found to hold ids outside the vocabulary")


def _too_long(table: Table, row: int, length: int, limit: int) -> BadRow:
    problem = f"{length} tokens, and at most {limit} are allowed"
    remedy = "Set on_long_prompt to drop or cut_left, or prepare the data with this max_length."
    return table.bad_row(row, BadValueError(RowError.LONG, "input_ids", table.rows[row]["input_ids"], problem, remedy))


def _told(manifest: Manifest) -> str:
    """What was done when the prompts were prepared."""
    left_out = ", ".join(f"{count} {why}" for why, count in manifest.left_out.items())
    return (
        f"Prepared from {manifest.source!r} with prompt_type {manifest.prompt_type}, format {manifest.dataset_format}: "
        f"{manifest.rows_written} of {manifest.rows_read} rows{'; left out: ' * bool(left_out)}{left_out}."
    )
