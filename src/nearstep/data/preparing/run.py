"""How a data set is prepared from end to end: sources found, work given out, results written, told and counted."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nearstep import __version__
from nearstep.common.errors import ConfigError, DataError
from nearstep.common.random_streams import stream
from nearstep.common.whole_folder import whole_folder
from nearstep.config.prepare import PrepareOptions
from nearstep.data.files.chunks import Chunk, in_chunks
from nearstep.data.fingerprint import tokenizer_fingerprint
from nearstep.data.formats.recognise import HEAD_ROWS, contradicted_hint
from nearstep.data.layout import layout_of
from nearstep.data.load import load_rows
from nearstep.data.manifest import MANIFEST, Manifest
from nearstep.data.preparing.arrow import described, write_arrow
from nearstep.data.preparing.pool import in_order, usable_cores
from nearstep.data.preparing.work import ChunkPreparer, PreparedChunk
from nearstep.data.reader import Counts, PromptReader
from nearstep.data.row_errors import BadRow, bad_rows, counted
from nearstep.data.stream import RowStream, open_stream
from nearstep.data.table import with_columns
from nearstep.data.templates import style_of, template_notes, unused_keywords, with_template
from nearstep.data.tokenise import PromptTokenizer
from nearstep.models.tokenizers import load_tokenizer

FIRST_LEFT_OUT = 20  # named in the manifest


def prepare(options: PrepareOptions, tell: Callable[[str], None]) -> Manifest:
    """Prepare a data set and return what is known of it; `tell` gets every line that the user should read.

    The output folder is there as a whole afterwards, or as it was before. Raises DataError, ConfigError or ModelError.
    """
    assert options.input is not None
    assert options.output is not None
    workers = min(options.workers, usable_cores())
    if workers < options.workers:
        tell(f"{options.workers} workers asked for, {workers} used: this process may use {workers} core(s)")
    rows = open_stream(options.input, split=options.split, config=options.dataset_config, from_hub_in_parts=False)
    preparer = ChunkPreparer(_reader(options, rows), options.names)
    layout = preparer.reader.layout
    hint = contradicted_hint(rows.name, layout.format)
    tokenizer = preparer.reader.tokenizer.tokenizer
    notes = [
        *template_notes(tokenizer, options.prompt_type),
        *unused_keywords(tokenizer, options.chat_template_kwargs or {}),
    ]
    for line in [f"{rows.name}, split {rows.split}: format {layout.name}", *hint, *notes]:
        tell(line)
    folder = Path(options.output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise ConfigError(f"output = {folder} holds something else than prepared data; give another folder")
    with whole_folder(folder) as unfinished:
        tally, file = _Tally(options, rows.label, tell), unfinished / "data-00000.arrow"
        with closing(in_order(preparer, _chosen(preparer, options, rows), workers)) as outcomes:
            write_arrow(tally.tables(outcomes), file)
        seconds = time.perf_counter() - tally.started
        manifest = _manifest(options, preparer.reader, tally, file)
        manifest.write(unfinished)
    rate = f"{manifest.rows_read / max(seconds, 1e-9):,.0f} rows/s"
    tell(f"{manifest.rows_written:,} of {manifest.rows_read:,} rows prepared in {seconds:.1f} s, {rate}")
    for line in manifest.sentences():
        tell(line)
    tell(f"written: {folder}, sha256 {manifest.sha256[:16]}…")
    return manifest


def _reader(options: PrepareOptions, rows: RowStream) -> PromptReader:
    """How rows become prompts, told by the first of them."""
    assert options.tokenizer is not None
    head = rows.with_columns(options.names).head(HEAD_ROWS, options.on_bad_row)
    layout = layout_of(head, options.dataset_format)
    plain = load_tokenizer(options.tokenizer, trust=options.trust)
    tokenizer = with_template(plain, options.prompt_type)
    kwargs = options.chat_template_kwargs
    encoder = PromptTokenizer.of(tokenizer, len(tokenizer), style_of(options.prompt_type), kwargs)
    return PromptReader(layout, encoder, options.max_length, options.on_long_prompt)


def _chosen(preparer: ChunkPreparer, options: PrepareOptions, rows: RowStream) -> Iterator[Chunk]:
    """The data in pieces: all rows, or those drawn by the seed. Trees are gathered first, so all rows are held."""
    shown = preparer.reader.layout.format
    if shown is not None and shown.gathers:
        table = load_rows(rows.name, split=options.split, config=options.dataset_config, on_bad_row=options.on_bad_row)
        gathered = shown.prompt_rows(with_columns(table, preparer.names))
        entries = [(gathered.position(number), row) for number, row in enumerate(gathered.rows)]
        rows = replace(rows, chunks=lambda number: in_chunks([*table.broken, *entries]))
    if options.max_samples is None:
        yield from rows.chunks(0)
        return
    drawn = _drawn(sum(map(len, rows.chunks(0))), options.max_samples, options.seed)
    numbered = enumerate(entry for chunk in rows.chunks(0) for entry in chunk.entries())
    yield from in_chunks(entry for number, entry in numbered if number in drawn)


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

    options: PrepareOptions
    label: str
    tell: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)
    left_out: list[BadRow] = field(default_factory=list)  # the first
    started: float = field(default_factory=time.perf_counter)

    def tables(self, outcomes: Iterable[PreparedChunk]) -> Iterator[Any]:
        """What is to be written. Raises `DataError` for bad rows that stop the work, and where nothing is left."""
        interval = self.options.log_interval
        for outcome in outcomes:
            if outcome.bad and self.options.on_bad_row == "raise":
                raise bad_rows(self.label, outcome.bad, None)
            before, self.counts = self.counts.read, self.counts + outcome.counts
            self.left_out += outcome.bad[: FIRST_LEFT_OUT - len(self.left_out)]
            yield outcome.table
            read, row_errors = self.counts.read, self.counts.row_errors
            if before // interval < read // interval:
                rate = read / (time.perf_counter() - self.started)
                left_out = f", {row_errors.total():,} left out" if row_errors else ""
                self.tell(f"{read:,} rows, {rate:,.0f} rows/s{left_out}")
        if self.counts.row_errors.total() == self.counts.read:
            why = counted(self.counts.row_errors.elements()) or "there are none"
            raise DataError(f"none of the {self.counts.read} rows of {self.label}, can be used: {why}.")


def _manifest(options: PrepareOptions, reader: PromptReader, tally: _Tally, file: Path) -> Manifest:
    assert options.input is not None
    assert options.tokenizer is not None
    counts, tokenizer = tally.counts, reader.tokenizer.tokenizer
    shard, lengths = described(file)
    return Manifest(
        nearstep=__version__,
        source=options.input,
        split=options.split,
        dataset_format=reader.layout.name,
        columns=options.names,
        tokenizer=options.tokenizer,
        tokenizer_class=type(tokenizer).__name__,
        fingerprint=tokenizer_fingerprint(tokenizer),
        prompt_type=options.prompt_type,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        max_length=options.max_length,
        on_long_prompt=options.on_long_prompt,
        max_samples=options.max_samples,
        seed=options.seed,
        rows_read=counts.read,
        rows_written=shard.rows,
        left_out={row_error.value: count for row_error, count in counts.row_errors.most_common()},
        left_out_first=tuple(f"{row.place}{row.said}" for row in tally.left_out),
        cut=counts.cut,
        shortened=counts.shortened,
        unpadded=counts.unpadded,
        eos_taken_off=counts.eos_taken_off,
        chats=counts.chats,
        tokens=lengths,
        shards=(shard,),
        sha256=hashlib.sha256(shard.sha256.encode()).hexdigest(),
        chat_template_kwargs=options.chat_template_kwargs or {},
    )
