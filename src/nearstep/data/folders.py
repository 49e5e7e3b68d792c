"""Which files of a local folder belong to which configuration and split, laid out as hubs store data sets.

What README.md says under `configs` holds. Else a subfolder is a configuration, unless it is `data` or named like a
split, and a file's split is its name without numbers and suffix: `train-00000-of-00004.parquet`, `test_sft.jsonl.gz`.
Files of other words are other splits. (`datasets` itself would put them all into train.)
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.packed import KINDS, kind_of
from nearstep.data.table import label

Splits: TypeAlias = dict[str, list[Path]]

SHARD = re.compile(r"[-_. ]*\d*(-of-\d+(-[0-9a-f]{16})?)?")
UNREAD = (".arrow", ".bz2", ".gz", ".ndjson", ".tar", ".tsv", ".txt", ".xlsx", ".xz", ".yaml", ".zip", ".zst")


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` made the folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def part_of(folder: Path, name: str, split: str, config: str | None) -> Path | list[Path]:
    """The files of a split, all of one kind, or the folder made by `datasets.save_to_disk` that holds it.

    Raises `DataError` that lists the splits or configurations that there are.
    """
    where = label(name, split)
    if is_saved(folder):
        if config is not None:
            raise DataError(f"{where}: datasets.save_to_disk made this folder, which has no dataset_config {config!r}.")
        return folder
    if configs := _declared(folder, where):
        return _declared_files(folder, configs, where, split, config)
    subfolders = {path.name: path for path in _visible(folder) if path.is_dir() and _is_config(path)}
    if config is not None and config in subfolders:
        return part_of(subfolders[config], name, split, None)
    found = _by_split(folder)
    if config not in (None, "default"):
        raise DataError(f"{where}: there is no configuration {config!r}, only {_listed(subfolders or ['default'])}")
    if not found and len(subfolders) == 1:
        return part_of(next(iter(subfolders.values())), name, split, None)
    if not found and subfolders:
        raise DataError(
            f"{where}: the folder holds the configurations {_listed(subfolders)}. Choose one by dataset_config."
        )
    unread = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in UNREAD and kind_of(path) is None)
    if not found:
        others = f". It holds {_listed(unread)}: unpack or convert what is data" if unread else ""
        raise DataError(f"{where}: the folder holds no file that ends in {KINDS}{others}")
    chosen = _chosen(split, found)
    if chosen is None:
        others = f". It also holds {_listed(unread)}, which cannot be read" if unread else ""
        raise DataError(f"{where}: there is no such split, only {_listed(sorted(found))}{others}")
    return _of_one_kind(found[chosen], where)


def _declared(folder: Path, where: str) -> Mapping[str, Mapping[str, Any]]:
    """The configurations that README.md names, by their names; none where it names none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    try:
        card = DatasetCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        configs: Mapping[str, Mapping[str, Any]] = MetadataConfigs.from_dataset_card_data(card.data)
    except (OSError, ValueError, YAMLError) as error:
        raise DataError(f"{where}: README.md has no readable configs: {shorten(str(error))}. Correct it.") from error
    return configs


def _declared_files(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], where: str, split: str, config: str | None
) -> list[Path]:
    """The files that README.md names for a split."""
    from datasets.data_files import resolve_pattern, sanitize_patterns

    wanted = config or next((name for name, one in configs.items() if one.get("default")), None)
    wanted = wanted or (next(iter(configs)) if len(configs) == 1 else "default")
    if wanted not in configs:
        raise DataError(
            f"{where}: README.md names the configurations {_listed(configs)}. Choose one by dataset_config."
        )
    base = folder / str(configs[wanted].get("data_dir") or "")
    if "data_files" in configs[wanted]:
        patterns = sanitize_patterns(configs[wanted]["data_files"])
        if split not in patterns:
            raise DataError(f"{where}: there is no such split, only {_listed(patterns)}")
        try:
            found = [Path(path) for pattern in patterns[split] for path in resolve_pattern(_local(pattern), str(base))]
        except (FileNotFoundError, ValueError) as error:
            said = shorten(str(error))
            raise DataError(f"{where}: README.md names files that are not there: {said}. Copy them too.") from error
        return _of_one_kind(sorted(set(found)), where)
    by_split = _by_split(base) if base.is_dir() else {}
    chosen = _chosen(split, by_split)
    if chosen is None:
        raise DataError(f"{where}: there is no such split in {base.name!r}, only {_listed(sorted(by_split))}")
    return _of_one_kind(by_split[chosen], where)


def _local(pattern: str) -> str:
    """Patterns of README.md; what lies elsewhere is not fetched from a local folder."""
    if "://" in pattern:
        raise ValueError(f"{pattern} lies elsewhere")
    return pattern


def _by_split(folder: Path, split: str | None = None) -> Splits:
    """The data files of a folder by their split; `split` is that of the folder itself, where its name says so."""
    found: Splits = {}
    for path in _visible(folder):
        if path.is_file() and kind_of(path) is not None:
            found.setdefault(split or _word(path), []).append(path)
        elif path.is_dir() and (split is not None or not _is_config(path)):
            below = _by_split(path, split or (None if path.name == "data" else path.name))
            for word, files in below.items():
                found.setdefault(word, []).extend(files)
    return found


def _is_config(folder: Path) -> bool:
    """Whether a subfolder is a configuration: one that holds data, and is not `data` or named by a split."""
    if folder.name == "data" or folder.name.lower() in _keywords():
        return False
    return is_saved(folder) or any(kind_of(path) is not None for path in folder.rglob("*"))


def _visible(folder: Path) -> Iterator[Path]:
    """What lies in a folder and may be data, in the order of its names."""
    from datasets.data_files import FILES_TO_IGNORE

    for path in sorted(folder.iterdir()):
        if not path.name.startswith((".", "__")) and path.name not in FILES_TO_IGNORE:
            yield path


def _word(file: Path) -> str:
    """The split in a file's name: what is left without suffix and numbers; `train` if nothing is."""
    stem = Path(file.name[:-3] if file.name.lower().endswith(".gz") else file.name).stem
    end = next(place for place in range(len(stem) + 1) if SHARD.fullmatch(stem, place))
    return stem[:end] or "train"


def _chosen(split: str, found: Iterable[str]) -> str | None:
    """The word that means a split: itself, another word for it, the only one that holds such a word, or, for train,
    the only word that there is and that means nothing else.
    """
    words, group = list(found), _keywords().get(split)
    if split in words:
        return split
    alike = [word for word in words if group is not None and _keywords().get(word.lower()) == group]
    alike = alike or [word for word in words if group is not None and _groups(word) == {group}]
    if not alike and split == "train" and len(words) == 1 and not _groups(words[0]):
        return words[0]
    return alike[0] if len(alike) == 1 else None


def _groups(word: str) -> set[str]:
    """The splits of which a word speaks: `my_train_data` of train."""
    keywords = _keywords()
    return {keywords[part] for part in re.split(r"[-_. \d]+", word.lower()) if part in keywords}


def _keywords() -> dict[str, str]:
    """Every word that means a split, as `datasets` has them: dev → validation."""
    from datasets.data_files import SPLIT_KEYWORDS

    return {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def _of_one_kind(files: list[Path], where: str) -> list[Path]:
    kinds = {kind_of(file) for file in files}
    found = _listed(file.name for file in files)
    if None in kinds:
        raise DataError(f"{where}: cannot read all of {found}, only {KINDS}. Unpack or convert them.")
    if len(kinds) > 1:
        raise DataError(f"{where}: the folder mixes kinds of files ({found[1:-1]}). Name one file, or part them.")
    return files


def _listed(names: Iterable[object]) -> str:
    return shorten(list(names))
