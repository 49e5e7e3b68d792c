"""How a data set is prepared from end to end: sources found, work given out, results written, told and counted."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import torch

from nearstep.common.errors import DataError
from nearstep.common.random_streams import stream
from nearstep.data.files.chunks import Chunk, in_chunks
from nearstep.data.fingerprint import tokenizer_fingerprint
from nearstep.data.formats.recognise import contradicted_hint
from nearstep.data.layout import layout_of
from nearstep.data.load import load_rows
from nearstep.data.manifest import Lengths, Manifest, Shard
from nearstep.data.preparing.arrow import described, whole_folder, write_arrow
from nearstep.data.preparing.plan import Plan, Request, reader_of
from nearstep.data.preparing.pool import in_order
from nearstep.data.preparing.work import Counts, Outcome, carry_out
from nearstep.data.row_errors import BadRow, bad_rows, counted
from nearstep.data.stream import RowStream, open_stream
from nearstep.data.table import with_columns
from nearstep.data.templates import template_notes

HEAD_ROWS = 100
FIRST_LEFT_OUT = 20  # named in the manifest


def prepare(request: Request, version: str, tell: Callable[[str], None]) -> Manifest:
    """Prepare a data set and return what is known of it; `tell` gets every line that the user should read.

    The output folder is there as a whole afterwards, or as it was before. Raises DataError, ConfigError or ModelError.
    """
    rows = open_stream(request.source, split=request.split, config=request.config, from_hub_in_parts=False)
    head = rows.with_columns(dict(request.columns)).head(HEAD_ROWS, request.on_bad_row)
    layout = layout_of(head.columns, list(head.rows), head.label, request.dataset_format)
    shown = layout.format
    format_name = None if shown is None else shown.name
    plan = Plan(request, format_name, shown is not None and shown.has_reference, layout.has_ids)
    hint = None if shown is None else contradicted_hint(request.source, shown)
    notes = template_notes(reader_of(plan).tokenizer.tokenizer, request.prompt_type)
    for line in [f"{request.source}, split {request.split}: format {layout.name}", *([hint] if hint else []), *notes]:
        tell(line)
    with whole_folder(request.output) as unfinished:
        tally, path = _Tally(request, rows.label, tell), unfinished / "data-00000.arrow"
        chunks = _chosen(_chunks(plan, rows), request)
        with closing(in_order(partial(carry_out, plan), chunks, request.workers)) as outcomes:
            written = write_arrow(tally.tables(outcomes), path)
        seconds = time.perf_counter() - tally.started
        manifest = _manifest(plan, tally, described(path, written), version)
        manifest.write(unfinished)
    for line in _closing(manifest, request, seconds):
        tell(line)
    return manifest


def _chunks(plan: Plan, rows: RowStream) -> Callable[[], Iterable[Chunk]]:
    """The data in pieces, from the beginning each time. Trees are gathered first, so all of their rows are held."""
    shown, request = plan.layout.format, plan.request
    if shown is None or not shown.gathers:
        return lambda: rows.chunks(0)
    table = load_rows(request.source, split=request.split, config=request.config, on_bad_row=request.on_bad_row)
    gathered = shown.prompt_rows(with_columns(table, dict(request.columns)))
    entries = [(gathered.position(number), row) for number, row in enumerate(gathered.rows)]
    return lambda: in_chunks([*table.broken, *entries])


def _chosen(chunks: Callable[[], Iterable[Chunk]], request: Request) -> Iterator[Chunk]:
    """All pieces, or new ones of the rows drawn by the seed."""
    if request.max_samples is None:
        yield from chunks()
        return
    drawn = _drawn(sum(map(len, chunks())), request.max_samples, request.seed)
    entries = enumerate(entry for chunk in chunks() for entry in chunk.entries())
    yield from in_chunks(entry for number, entry in entries if number in drawn)


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

    request: Request
    label: str
    tell: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    left_out: list[BadRow] = field(default_factory=list)  # the first
    started: float = field(default_factory=time.perf_counter)

    def tables(self, outcomes: Iterable[Outcome]) -> Iterator[Any]:
        """What is to be written. Raises `DataError` for bad rows that stop the work, and where nothing is left."""
        for outcome in outcomes:
            if outcome.bad and self.request.on_bad_row == "raise":
                raise bad_rows(self.label, outcome.bad, None)
            before, self.counts = self.counts.read, self.counts + outcome.counts
            self.left_out += outcome.bad[: FIRST_LEFT_OUT - len(self.left_out)]
            yield outcome.table
            read, row_errors = self.counts.read, self.counts.row_errors.total()
            if before // self.request.log_interval < read // self.request.log_interval:
                rate = read / (time.perf_counter() - self.started)
                self.tell(f"{read:,} rows, {rate:,.0f} rows/s" + (f", {row_errors:,} left out" if row_errors else ""))
        if not self.counts.lengths:
            why = counted(self.counts.row_errors.elements()) or "there are none"
            raise DataError(f"none of the {self.counts.read} rows of {self.label}, can be used: {why}.")


def _manifest(plan: Plan, tally: _Tally, shard: Shard, version: str) -> Manifest:
    request, counts, tokenizer = plan.request, tally.counts, reader_of(plan).tokenizer.tokenizer
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
        rows_read=counts.read,
        rows_written=shard.rows,
        left_out={row_error.value: count for row_error, count in counts.row_errors.most_common()},
        left_out_first=tuple(f"{row.place}{row.said}" for row in tally.left_out),
        cut=counts.cut,
        shortened=counts.shortened,
        unpadded=counts.unpadded,
        eos_taken_off=counts.eos_taken_off,
        chats=counts.chats,
        tokens=_lengths(sorted(counts.lengths.elements())),
        shards=(shard,),
        sha256=hashlib.sha256(shard.sha256.encode()).hexdigest(),
    )


def _lengths(tokens: Sequence[int]) -> Lengths:
    """What is told of the numbers of tokens of all prompts, shortest first."""
    median, ninety = (tokens[ceil(share * len(tokens)) - 1] for share in (0.5, 0.9))
    return Lengths(sum(tokens), tokens[0], median, ninety, tokens[-1])


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
        (True, f"written: {request.output}, sha256 {manifest.sha256[:16]}…"),
    ]  # fmt: skip
    return [line for holds, line in said if holds]
