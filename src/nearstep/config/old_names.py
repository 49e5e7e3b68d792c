"""Which names other libraries gave to our settings, and which of their settings have no counterpart here.

They stand in `old_names.toml`, with their sources.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Retired:
    """A setting without counterpart: why, what to do, and the values that lose nothing by being left out."""

    sentence: str
    harmless: tuple[object, ...] | None = None  # None: any value

    def is_harmless(self, value: object) -> bool:
        """Whether a run means the same without the setting; numbers and words may come as text."""
        return self.harmless is None or _plain(value) in self.harmless


@dataclass(frozen=True)
class OldNames:
    """The names that one command understands beside its own."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    retired: Mapping[str, Retired] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by setting: theirs → ours


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return float(value)
    except ValueError:
        return value


def _read(names: Mapping[str, Any]) -> OldNames:
    """The names of a command as the file has them."""
    retired = {
        name: Retired(entry) if isinstance(entry, str) else Retired(entry["why"], tuple(map(_plain, entry["harmless"])))
        for name, entry in names["retired"].items()
    }
    return OldNames(names["renamed"], retired, names["values"])


_FILE = tomllib.loads((files(__package__) / "old_names.toml").read_text(encoding="utf-8"))

OF_TRAINING = _read(_FILE["training"])
OF_PREPARE = _read(_FILE["prepare"])
OF_REWARD_MODELS = OldNames(
    {**OF_TRAINING.renamed, **_FILE["reward_models"]["renamed"]},
    {name: retired for name, retired in OF_TRAINING.retired.items() if name != "max_seq_length"},
)
