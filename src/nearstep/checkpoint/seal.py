"""When a checkpoint exists: once its folder has a manifest whose sizes and hashes are those of its files."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from nearstep.checkpoint import files
from nearstep.common.errors import CheckpointError, shorten

MANIFEST = "manifest.json"
SaveKind: TypeAlias = Literal["fault", "kept", "best"]
WeightLayout: TypeAlias = Literal["whole", "pieces"]
FORMATS: Mapping[WeightLayout, int] = {"whole": 1, "pieces": 2}  # another where an older nearstep could not read it


@dataclass(frozen=True)
class FileSum:
    """What tells whether a file is as it was written."""

    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> "FileSum":
        """That of a file."""
        return FileSum(path.stat().st_size, files.sha256(path))


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint is, and the size and SHA-256 of each of its files by relative path."""

    update: int
    kind: SaveKind
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    parent: str | None = None  # seal of the checkpoint that the run was forked from
    layout: WeightLayout = "whole"  # whole tensors, or parts of them, of every process its own; any number reads both
    format: int = FORMATS["whole"]

    @property
    def seal(self) -> str:
        """A hash of all this; it names the checkpoint."""
        return hashlib.sha256(files.as_json(asdict(self)).encode()).hexdigest()

    @property
    def text(self) -> str:
        """The content of the file, to the byte."""
        return files.as_json({**asdict(self), "seal": self.seal})


@contextmanager
def sealed_folder(
    target: Path,
    *,
    update: int,
    kind: SaveKind,
    parent: str | None,
    layout: WeightLayout = "whole",
    sums: Mapping[str, FileSum] = MappingProxyType({}),
) -> Iterator[Path]:
    """A hidden folder to write a checkpoint in; it takes its name once all lies on the disk, and goes away otherwise.
    `sums` are those of files that other processes have written and synced, by relative path.

    The order is the guarantee: files, then the manifest, then the name, each synced before the next. A process that
    dies anywhere leaves a hidden folder, which the next start removes, or a whole checkpoint.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    files.remove(unfinished) if unfinished.exists() else None
    files.make_folder(unfinished)
    try:
        yield unfinished
        written = sorted(path for path in unfinished.rglob("*") if path.is_file())
        names = {path.relative_to(unfinished).as_posix(): path for path in written}
        for name, path in names.items():
            if name not in sums:
                files.sync(path)
        found = {name: sums[name] if name in sums else FileSum.of(path) for name, path in names.items()}
        manifest = CheckpointManifest(
            update, kind, {name: each.size for name, each in found.items()},
            {name: each.sha256 for name, each in found.items()}, parent, layout, FORMATS[layout],
        )  # fmt: skip
        files.write_text(unfinished / MANIFEST, manifest.text)
        files.sync(unfinished / MANIFEST)
        for folder in sorted({path.parent for path in written} | {unfinished}):
            files.sync(folder)
        if target.exists():
            files.remove(target)
        files.move(unfinished, target)
        files.sync(target.parent)
    finally:
        if unfinished.exists():
            files.remove(unfinished)


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint. Raises CheckpointError where there is none that can be read."""
    path = folder / MANIFEST
    try:
        text = files.read_text(path)
        content = cast(dict[str, Any], json.loads(text))
        seal = content.pop("seal")
        found_format = content["format"]
        manifest = CheckpointManifest(**content)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if found_format not in FORMATS.values():
        known = " and ".join(map(str, FORMATS.values()))
        raise CheckpointError(f"{folder} has format {shorten(found_format)}, and this nearstep reads formats {known}")
    if seal != manifest.seal or text != manifest.text:
        raise CheckpointError(f"{path} is damaged: it is not as it was written")
    return manifest


def check_whole(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint whose every byte is as it was written. Raises CheckpointError, naming the file."""
    manifest = read_manifest(folder)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(manifest.hashes.keys() | present):
        path = folder / name
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link, and a checkpoint holds none")
        if name not in present:
            raise CheckpointError(f"{path} is missing")
        if name not in manifest.hashes:
            raise CheckpointError(f"{path} is not part of the checkpoint: remove it")
        if path.stat().st_size != manifest.sizes[name]:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes instead of {manifest.sizes[name]:,}")
        if files.sha256(path) != manifest.hashes[name]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of the manifest")
    return manifest
