"""Which kind a data file is, packed by gzip or not, and how its bytes are read."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from nearstep.common.errors import DataError

PLAIN = (".jsonl", ".json", ".csv")
SUFFIXES = (*PLAIN, ".parquet")
KINDS = f"{', '.join(SUFFIXES)} ({', '.join(f'{suffix}.gz' for suffix in PLAIN)} too)"


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read, that of the packed one under `.gz`; None if it cannot be read."""
    name = path.name.lower()
    unpacked = Path(name.removesuffix(".gz"))
    known = PLAIN if name.endswith(".gz") else SUFFIXES
    return unpacked.suffix if unpacked.suffix in known else None


def open_bytes(path: Path) -> BufferedIOBase:
    """The bytes of a file as they were before packing."""
    return gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")


@contextmanager
def readable(path: Path, where: str) -> Iterator[None]:
    """Turn what the system or gzip says of a file into a `DataError` that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{where}, file {path.name!r}: cannot be unpacked ({error}). It is cut or no gzip: copy it again."
        ) from error
    except OSError as error:
        said = f"cannot be read: {error.strerror}. Check its permissions."
        raise DataError(f"{where}, file {path.name!r}: {said}") from error
