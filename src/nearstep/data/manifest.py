"""What stands beside prepared prompts: where they come from, how they were made, and what was left out."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from nearstep.common.errors import DataError

MANIFEST = "manifest.json"
VERSION = 1  # of the file's own layout


@dataclass(frozen=True)
class Shard:
    """One file of the data set."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Lengths:
    """How long the prompts are, in tokens."""

    total: int
    shortest: int
    median: int
    ninety_percent: int
    longest: int

    @staticmethod
    def of(lengths: NDArray[numpy.integer[Any]]) -> "Lengths":
        """Those of at least one prompt."""
        ordered = numpy.sort(lengths)
        median, ninety = (int(ordered[ceil(share * len(ordered)) - 1]) for share in (0.5, 0.9))
        return Lengths(int(ordered.sum()), int(ordered[0]), median, ninety, int(ordered[-1]))

    @property
    def spread(self) -> str:
        """As the user reads it."""
        return (
            f"shortest {self.shortest}, median {self.median}, 90 % up to {self.ninety_percent}, longest {self.longest}"
        )


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of prepared prompts beside themselves."""

    nearstep: str  # its version
    source: str  # as given
    split: str
    dataset_format: str
    columns: Mapping[str, str]  # ours → those of the source
    tokenizer: str  # as given
    tokenizer_class: str
    fingerprint: str
    prompt_type: str
    chat_template: str | None  # the one in use, where there is one
    max_length: int | None
    on_long_prompt: str
    max_samples: int | None
    seed: int
    rows_read: int
    rows_written: int
    left_out: Mapping[str, int]  # why → how many
    left_out_first: tuple[str, ...]  # the first of them, each with place, column and value
    cut: int
    shortened: int
    unpadded: int
    eos_taken_off: int
    chats: int
    tokens: Lengths
    shards: tuple[Shard, ...]
    sha256: str  # of the hashes of all shards
    version: int = VERSION
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What was done to rows, and how long the prompts are."""
        limit = f"{self.max_length} tokens"
        left_out = ", ".join(f"{count:,} {why}" for why, count in self.left_out.items())
        said = [
            (left_out, f"left out: {left_out}"),
            *((True, f"  {row}") for row in self.left_out_first[:3]),
            (self.shortened, f"{self.shortened:,} posts lost their last paragraphs to fit into {limit}"),
            (self.cut, f"{self.cut:,} prompts keep only their last tokens: longer than {limit}"),
            (self.unpadded, f"{self.unpadded:,} prompts had padding, which was taken off"),
            (self.eos_taken_off, f"the tokenizer's EOS was taken off the end of {self.eos_taken_off:,} prompts"),
            (True, f"tokens: {self.tokens.total:,}; {self.tokens.spread}"),
        ]
        return [sentence for holds, sentence in said if holds]

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Prepared:
    """Prepared prompts: what is known of them, and the `datasets.Dataset` itself."""

    manifest: Manifest
    dataset: Any


def read_manifest(folder: Path, label: str) -> Manifest | None:
    """The manifest of a folder, None if it has none; files that are missing or cut are an error.

    Raises `DataError` naming the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        manifest = _from(values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{label}: {MANIFEST} cannot be read ({error}). Prepare the data again.") from error
    for shard in manifest.shards:
        found = folder / shard.file
        size = found.stat().st_size if found.is_file() else None
        if size != shard.bytes:
            has = "is missing" if size is None else f"has {size} bytes, and {shard.bytes} were written"
            raise DataError(f"{label}, file {shard.file!r} {has}. Copy it again, or prepare the data again.")
    return manifest


def _from(values: dict[str, Any]) -> Manifest:
    if values["version"] != VERSION:
        raise ValueError(f"it has version {values['version']}, and this nearstep reads version {VERSION}")
    shards = tuple(Shard(**shard) for shard in values["shards"])
    return Manifest(**{
        **values, "shards": shards, "tokens": Lengths(**values["tokens"]),
        "left_out_first": tuple(values["left_out_first"]),
    })  # fmt: skip
