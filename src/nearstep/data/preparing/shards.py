"""How prepared prompts are written: Arrow files that `datasets.load_from_disk` opens, whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nearstep.common.errors import ConfigError
from nearstep.data.manifest import MANIFEST, Shard
from nearstep.data.preparing.columns import adapted, merged_schema

SHARD_BYTES = 1 << 28


@dataclass
class _Open:
    """The file that is being written."""

    path: Path
    schema: Any
    sink: Any
    writer: Any
    rows: int = 0


class ShardWriter:
    """Writes tables one after the other into a hidden folder beside the final one, and moves it there at the end.

    A file has one schema. A table with other columns or types starts another file; at the end all files get the
    columns and types that hold everything.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where `folder` holds something that is not prepared data."""
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
            raise ConfigError(f"output = {folder} holds something else than prepared data; give another folder")
        self._folder = folder
        self.unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)
        self._closed: list[_Open] = []
        self._open: _Open | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._close()
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def add(self, arrow: bytes) -> None:
        """Write the rows of an Arrow stream."""
        import pyarrow  # type: ignore[import-untyped]

        table = pyarrow.ipc.open_stream(arrow).read_all()
        if len(table) == 0:
            return
        schema = table.schema if self._open is None else merged_schema(self._open.schema, table.schema)
        if self._open is not None and (schema != self._open.schema or self._open.sink.tell() >= SHARD_BYTES):
            self._close()
        if self._open is None:
            self._open = self._begin(schema)
        self._open.writer.write_table(adapted(table, schema))
        self._open.rows += len(table)

    def finish(self) -> tuple[Shard, ...]:
        """Bring all files to one schema, and write what `datasets` wants beside them."""
        if self._open is not None:
            self._close()
        schema = self._closed[0].schema
        for shard in self._closed[1:]:
            schema = merged_schema(schema, shard.schema)
        for shard in self._closed:
            if shard.schema != schema:
                self._rewrite(shard, schema)
        shards = tuple(_described(shard) for shard in self._closed)
        self._describe(schema, digest_of(shards))
        return shards

    def move_into_place(self) -> None:
        """Give the folder its name; one that was prepared before gives way."""
        for path in self.unfinished.iterdir():
            _sync(path)
        former = self._folder.with_name(f".{self._folder.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(former)
        self.unfinished.rename(self._folder)
        shutil.rmtree(former, ignore_errors=True)

    def _begin(self, schema: Any, name: str | None = None) -> _Open:
        import pyarrow

        path = self.unfinished / (name or f"data-{len(self._closed):05d}.arrow")
        sink = pyarrow.OSFile(str(path), "wb")
        return _Open(path, schema, sink, pyarrow.ipc.new_stream(sink, schema))

    def _close(self) -> None:
        assert self._open is not None
        _end(self._open)
        self._closed.append(self._open)
        self._open = None

    def _rewrite(self, shard: _Open, schema: Any) -> None:
        """Write a file anew under another schema, batch by batch."""
        import pyarrow

        other = self._begin(schema, name=f"{shard.path.name}.other")
        with pyarrow.memory_map(str(shard.path)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                other.writer.write_table(adapted(pyarrow.Table.from_batches([batch]), schema))
        _end(other)
        other.path.replace(shard.path)

    def _describe(self, schema: Any, digest: str) -> None:
        """The two files by which `datasets.load_from_disk` knows its own folders."""
        import datasets

        features = datasets.Features.from_arrow_schema(schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(self.unfinished))
        state: dict[str, object] = {
            "_data_files": [{"filename": shard.path.name} for shard in self._closed],
            "_fingerprint": digest[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": "train",
        }
        (self.unfinished / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def digest_of(shards: Sequence[Shard]) -> str:
    """One hash of all files."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def _end(shard: _Open) -> None:
    shard.writer.close()
    shard.sink.close()


def _described(shard: _Open) -> Shard:
    with shard.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(shard.path.name, shard.rows, shard.path.stat().st_size, digest)


def _sync(path: Path) -> None:
    """Have the file on the disk before the folder gets its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
