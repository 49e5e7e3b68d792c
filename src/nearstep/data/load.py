"""Where rows come from: a name is a file, a folder or a data set of the hub; an object is taken as it is."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.packed import KINDS, SUFFIXES, kind_of
from nearstep.data.files.read import columns_of, read_files
from nearstep.data.folders import UNREAD, part_of
from nearstep.data.manifest import Prepared, read_manifest
from nearstep.data.slices import parted
from nearstep.data.table import Table, label, row_index

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PACKED = (".bz2", ".gz", ".xz", ".zip", ".zst")


def load_rows(name: str, *, split: str, config: str | None, on_bad_row: Literal["raise", "drop"] = "raise") -> Table:
    """The rows of a local file, a local folder, or else of a hub data set.

    Raises `DataError` naming data set, split and, where a file is broken, the line.
    """
    whole, part = parted(split)
    place = locate(name, split=whole, config=config)
    if isinstance(place, Hub):
        return table_of(load_from_hub(name, split, config), name, split)
    if isinstance(place, Files):
        table = replace(read_files(place.paths, name, whole, on_bad_row), split=split)
    else:
        manifest = read_manifest(place.path, label(name, split))
        dataset = saved_split(place.path, name, whole)
        prepared = None if manifest is None else Prepared(manifest, dataset)
        table = replace(table_of(dataset, name, split), prepared=prepared)
    return table if part is None else part.of_table(table)


@dataclass(frozen=True)
class Files:
    """Local files of one kind that make up a split."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Saved:
    """A folder made by `datasets.save_to_disk`."""

    path: Path


@dataclass(frozen=True)
class Hub:
    """A data set of the hub, or one that its cache holds."""


def locate(name: str, *, split: str, config: str | None) -> Files | Saved | Hub:
    """Where a name leads; nothing is read but the names of files. Raises `DataError` where it leads nowhere."""
    path = Path(os.path.expanduser(name))
    if not name or not os.path.exists(path):
        if not HUB_NAME.fullmatch(name) or path.suffix.lower() in SUFFIXES + UNREAD:
            raise DataError(f"{label(name, split)}: there is no such file or folder, seen from {os.getcwd()!r}")
        return Hub()
    if path.is_dir():
        found = part_of(path, name, split, config)
        return Saved(found) if isinstance(found, Path) else Files(tuple(found))
    if config is not None:
        raise DataError(
            f"{label(name, split)}: dataset_config = {config!r} chooses a part of a folder or of a hub data set, and "
            "this is a file. Leave it out."
        )
    return _locate_file(path, name, split)


def _locate_file(path: Path, name: str, split: str) -> Files:
    if kind_of(path) is None:
        kind = "".join(path.suffixes[-2:]) if path.suffix in PACKED else path.suffix
        raise DataError(
            f"{label(name, split)}: cannot read files of the kind {kind!r}, only {KINDS}. Unpack or convert it."
        )
    if split != "train":
        raise DataError(
            f"{label(name, split)}: a single file has only the split 'train'. Name the file of {split!r} itself."
        )
    return Files((path,))


def saved_split(path: Path, name: str, split: str) -> Any:
    """A split of a folder made by `datasets.save_to_disk`, read where it lies. Raises `DataError` if there is none."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{label(name, split)}: no folder of datasets.save_to_disk: {_first_lines(error)}") from error
    by_split = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
    _check_split(split, by_split, name)
    return by_split[split]


def _check_split(split: str, found: Iterable[str], name: str) -> None:
    if split not in found:
        raise DataError(f"{label(name, split)}: there is no such split, only {_listed(found)}")


def load_from_hub(name: str, split: str, config: str | None, *, streaming: bool = False) -> Any:
    """A data set of the hub, or of its cache. Raises `DataError` where it cannot be had."""
    import datasets

    try:
        found = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except ConnectionError as error:
        raise DataError(
            f"{label(name, split)}: there is no such file or folder, and the hub cannot be reached: "
            f"{_first_lines(error)}. Check the name and the network, or give a local file."
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{label(name, split)}, configuration {config!r}: cannot be loaded from the hub: {_first_lines(error)}. "
            "Check name, split and configuration on its page, and `hf auth login` if it is private."
        ) from error
    return found


def table_of(dataset: object, name: str, split: str) -> Table:
    """The rows of an object: a `datasets.Dataset`, or a sequence of mappings.

    Raises `DataError` for anything else, saying how to turn it into one of the two.
    """
    import datasets

    if isinstance(dataset, datasets.Dataset):
        return Table(name, split, dataset, tuple(dataset.column_names), row_index)
    if isinstance(dataset, str | bytes) or not isinstance(dataset, Sequence):
        raise DataError(f"{label(name, split)}: {_why_no_table(dataset)}")
    for number, row in enumerate(dataset):
        if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
            raise DataError(
                f"{label(name, split)}, {row_index(number)}: expected a mapping from column names to values, such as "
                f"{{'prompt': '…'}}, got {shorten(row)}"
            )
    return Table(name, split, dataset, columns_of(dataset), row_index)


def _why_no_table(dataset: object) -> str:
    import datasets

    if isinstance(dataset, datasets.IterableDataset | datasets.IterableDatasetDict):
        return "a streamed data set cannot be read by row number. Load it without streaming=True, or set streaming."
    if isinstance(dataset, datasets.DatasetDict):
        return f"it holds the splits {_listed(dataset)}. Give one of them, as in dataset['train']."
    if isinstance(dataset, Mapping):
        return f"it is one mapping ({_listed(dataset)}), not one for each row. Use datasets.Dataset.from_dict."
    if isinstance(dataset, str):
        return f"it is the text {shorten(dataset)}. A name belongs into dataset_name, a prompt into a row."
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    return f"a {kind} cannot be read by row number. Give a datasets.Dataset, or a list with one mapping for each row."


def _listed(names: Iterable[object]) -> str:
    return shorten(list(names))


def _first_lines(error: Exception) -> str:
    """What a library said, short enough to stand in a sentence."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
