"""Which questions were answered before: one file, which several processes may read and write at once."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from nearstep.common.errors import ConfigError

BUSY_SECONDS = 60.0  # that another process may hold the file
ASKED_TOGETHER = 500  # keys in one statement


class AnswerCache:
    """Answers by key, in an SQLite file: each is there in full or not at all, whoever dies in between."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file can be neither made nor read."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cache = {path} is no file of answers that can be written: {error}") from error

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers to those that were answered."""
        found: dict[str, str] = {}
        with self._open() as connection:
            for start in range(0, len(keys), ASKED_TOGETHER):
                some = keys[start : start + ASKED_TOGETHER]
                marks = ",".join("?" * len(some))
                found.update(connection.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", some))
        return found

    def write(self, key: str, answer: str) -> None:
        """Keep an answer; one that is there already stays."""
        with self._open() as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, answer))

    def _open(self) -> "_Transaction":
        return _Transaction(self._path)


class _Transaction:
    """A connection of its own for each use: threads and processes share the file and nothing else."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection.__enter__()

    def __exit__(self, *error: object) -> None:
        try:
            self._connection.__exit__(*error)  # type: ignore[arg-type]
        finally:
            self._connection.close()
