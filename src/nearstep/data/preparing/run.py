"""How a data set is prepared from end to end: sources found, work given out, results written, told and counted."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError
from nearstep.common.random_streams import stream
from nearstep.data.files.chunks import Chunk, in_chunks
from nearstep.data.fingerprint import tokenizer_fingerprint
from nearstep.data.formats.recognise import contradicted_hint
from nearstep.data.layout import Layout, layout_of
from nearstep.data.load import load_rows
from nearstep.data.manifest import Lengths, Manifest, Shard
from nearstep.data.preparing.plan import Plan, reader_of
from nearstep.data.preparing.pool import in_order
from nearstep.data.preparing.shards import ShardWriter, digest_of
from nearstep.data.preparing.work import Outcome, SomeOf, Task, carry_out
from nearstep.data.reader import OnLongPrompt
from nearstep.data.row_errors import BadRow, RowError, bad_rows, counted
from nearstep.data.stream import RowStream, open_stream
from nearstep.data.table import with_columns
from nearstep.data.templates import template_notes

HEAD_ROWS = 100
FIRST_LEFT_OUT = 20  # named in the manifest


@dataclass(frozen=True)
class Request:
    """What shall be prepared, and how."""

    source: str
    tokenizer: str
    output: Path
    split: str = "train"
    config: str | None = None
    dataset_format: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    prompt_type: str = "none"
    max_length: int | None = None
    on_long_prompt: OnLongPrompt = "drop"
    on_bad_row: Literal["raise", "drop"] = "raise"
    max_samples: int | None = None
    seed: int = 42
    workers: int = 1
    log_interval: int = 10_000
    trust_remote_code: bool = False


def prepare(request: Request, version: str, tell: Callable[[str], None]) -> Manifest:
    """Prepare a data set and return what is known of it; `tell` gets every line that the user should read.

    The output folder is there as a whole afterwards, or as it was before. Raises DataError, ConfigError or ModelError.
    """
    rows = open_stream(request.source, split=request.split, config=request.config, from_hub_in_parts=False)
    head = rows.with_columns(dict(request.columns)).head(HEAD_ROWS, request.on_bad_row)
    layout = layout_of(head.columns, list(head.rows), head.label, request.dataset_format)
    plan = _plan(request, layout)
    tokenizer = reader_of(plan).tokenizer.tokenizer
    for line in _opening(request, layout, tokenizer):
        tell(line)
    with ShardWriter(request.output) as writer:
        tally = _Tally(rows.label)
        tasks = (Task(plan, chunk) for chunk in _chosen(_chunks(request, rows, layout), request))
        started = time.perf_counter()
        for outcome in in_order(carry_out, tasks, request.workers):
            due = tally.add(outcome, request)
            writer.add(outcome.arrow)
            if due:
                tell(tally.progress(time.perf_counter() - started))
        seconds = time.perf_counter() - started
        tally.check()
        shards = writer.finish()
        manifest = _manifest(request, plan, tokenizer, tally, shards, version)
        manifest.write(writer.unfinished)
        writer.move_into_place()
    for line in _closing(manifest, request, seconds):
        tell(line)
    return manifest


def _plan(request: Request, layout: Layout) -> Plan:
    shown = layout.format
    return Plan(
        tokenizer=request.tokenizer,
        prompt_type=request.prompt_type,
        trust_remote_code=request.trust_remote_code,
        dataset_format=None if shown is None else shown.name,
        has_reference=shown is not None and shown.has_reference,
        has_ids=layout.has_ids,
        names=request.columns,
        max_length=request.max_length,
        on_long_prompt=request.on_long_prompt,
        on_bad_row=request.on_bad_row,
    )


def _chunks(request: Request, rows: RowStream, layout: Layout) -> Callable[[], Iterable[Chunk]]:
    """The data in pieces, from the beginning each time. Trees are gathered first, so all of their rows are held."""
    if layout.format is None or not layout.format.gathers:
        return lambda: rows.chunks(0)
    table = load_rows(request.source, split=request.split, config=request.config, on_bad_row=request.on_bad_row)
    gathered = layout.format.prompt_rows(with_columns(table, dict(request.columns)))
    entries = [(gathered.position(number), row) for number, row in enumerate(gathered.rows)]
    return lambda: in_chunks([*table.broken, *entries])


def _chosen(chunks: Callable[[], Iterable[Chunk]], request: Request) -> Iterator[Chunk]:
    """All pieces, or those parts of them that hold the rows drawn by the seed."""
    if request.max_samples is None:
        yield from chunks()
        return
    total = sum(len(chunk) for chunk in chunks())
    drawn = sorted(_drawn(total, request.max_samples, request.seed))
    first = start = 0
    for chunk in chunks():
        stop = start
        while stop < len(drawn) and drawn[stop] < first + len(chunk):
            stop += 1
        if stop > start:
            yield SomeOf(chunk, frozenset(number - first for number in drawn[start:stop]))
        first, start = first + len(chunk), stop


def _drawn(total: int, count: int, seed: int) -> set[int]:
    """`count` different numbers below `total`, every choice equally likely (Floyd's method: only they are held)."""
    generator = stream(seed, "prepare")
    drawn: set[int] = set()
    for last in range(max(0, total - count), total):
        number = int(torch.randint(last + 1, (), generator=generator))
        drawn.add(last if number in drawn else number)
    return drawn


@dataclass
class _Tally:
    """What has been counted so far."""

    label: str
    read: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    row_errors: Counter[RowError] = field(default_factory=Counter)
    first: list[BadRow] = field(default_factory=list)
    cut: int = 0
    shortened: int = 0
    unpadded: int = 0
    eos_taken_off: int = 0
    chats: int = 0

    @property
    def written(self) -> int:
        return self.lengths.total()

    def add(self, outcome: Outcome, request: Request) -> bool:
        """Count a piece; whether it is time to say so. Raises `DataError` for bad rows that shall not be dropped."""
        if outcome.bad and request.on_bad_row == "raise":
            raise bad_rows(self.label, outcome.bad, None)
        before, self.read = self.read, self.read + outcome.rows
        self.lengths.update(outcome.lengths)
        self.row_errors.update(row.row_error for row in outcome.bad)
        self.row_errors[RowError.LONG] += outcome.too_long
        self.first += outcome.bad[: FIRST_LEFT_OUT - len(self.first)]
        self.cut += outcome.cut
        self.shortened += outcome.shortened
        self.unpadded += outcome.unpadded
        self.eos_taken_off += outcome.eos_taken_off
        self.chats += outcome.chats
        return before // request.log_interval < self.read // request.log_interval

    def progress(self, seconds: float) -> str:
        left_out = f", {self.row_errors.total():,} left out" if self.row_errors.total() else ""
        return f"{self.read:,} rows, {self.read / seconds:,.0f} rows/s{left_out}"

    def check(self) -> None:
        """Raise `DataError` where nothing is left."""
        if not self.written:
            why = counted((+self.row_errors).elements()) or "there are none"
            raise DataError(f"none of the {self.read} rows of {self.label}, can be used: {why}.")


def _manifest(
    request: Request, plan: Plan, tokenizer: PreTrainedTokenizerBase, tally: _Tally, shards: Sequence[Shard],
    version: str,
) -> Manifest:  # fmt: skip
    left_out = {row_error.value: count for row_error, count in (+tally.row_errors).most_common()}
    return Manifest(
        nearstep=version,
        source=request.source,
        split=request.split,
        dataset_format=plan.layout.name,
        columns=dict(request.columns),
        tokenizer=request.tokenizer,
        tokenizer_class=type(tokenizer).__name__,
        fingerprint=tokenizer_fingerprint(tokenizer),
        prompt_type=request.prompt_type,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        max_length=request.max_length,
        on_long_prompt=request.on_long_prompt,
        max_samples=request.max_samples,
        seed=request.seed,
        rows_read=tally.read,
        rows_written=tally.written,
        left_out=left_out,
        left_out_first=tuple(f"{row.place}{row.said}" for row in tally.first),
        cut=tally.cut,
        shortened=tally.shortened,
        unpadded=tally.unpadded,
        eos_taken_off=tally.eos_taken_off,
        chats=tally.chats,
        tokens=_lengths(tally.lengths),
        shards=tuple(shards),
        sha256=digest_of(shards),
    )


def _lengths(lengths: Counter[int]) -> Lengths:
    in_order = sorted(lengths.items())
    median, ninety = (_quantile(in_order, math.ceil(share * lengths.total())) for share in (0.5, 0.9))
    total = sum(length * count for length, count in in_order)
    return Lengths(total, in_order[0][0], median, ninety, in_order[-1][0])


def _quantile(in_order: Sequence[tuple[int, int]], rank: int) -> int:
    """The length of the prompt of this rank (from 1)."""
    before = 0
    for length, count in in_order:
        before += count
        if before >= rank:
            return length
    raise ValueError(f"there are {before} lengths, and that of rank {rank} was asked for")


def _opening(request: Request, layout: Layout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    hint = None if layout.format is None else contradicted_hint(request.source, layout.format)
    return [
        f"{request.source}, split {request.split}: format {layout.name}",
        *([hint] if hint else []),
        *template_notes(tokenizer, request.prompt_type),
    ]


def _closing(manifest: Manifest, request: Request, seconds: float) -> list[str]:
    left_out = ", ".join(f"{count:,} {why}" for why, count in manifest.left_out.items())
    tokens, limit = manifest.tokens, f"{manifest.max_length} tokens"
    said = [
        (True, f"{manifest.rows_written:,} of {manifest.rows_read:,} rows prepared in {seconds:.1f} s, "
               f"{manifest.rows_read / max(seconds, 1e-9):,.0f} rows/s"),
        (left_out, f"left out: {left_out}"),
        *((True, f"  {row}") for row in manifest.left_out_first[:3]),
        (manifest.shortened, f"{manifest.shortened:,} posts lost their last paragraphs to fit into {limit}"),
        (manifest.cut, f"{manifest.cut:,} prompts keep only their last tokens: longer than {limit}"),
        (manifest.unpadded, f"{manifest.unpadded:,} prompts had padding, which was taken off"),
        (manifest.eos_taken_off, f"the tokenizer's EOS was taken off the end of {manifest.eos_taken_off:,} prompts"),
        (True, f"tokens: {tokens.total:,}; shortest {tokens.shortest}, median {tokens.median}, "
               f"90 % up to {tokens.ninety_percent}, longest {tokens.longest}"),
        (True, f"written: {request.output}, {len(manifest.shards)} file(s), sha256 {manifest.sha256[:16]}…"),
    ]  # fmt: skip
    return [line for holds, line in said if holds]
