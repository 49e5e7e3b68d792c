"""What stands here for the names of reward functions in AlignTune, and why where nothing does."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Counterpart:
    """What to use instead of a reward of another library: specs of built-ins (none where none can do it), and why."""

    why: str
    here: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Both in a sentence."""
        return f"use {' or '.join(self.here)}: {self.why}" if self.here else self.why


_FILE = tomllib.loads((files(__package__) / "other_names.toml").read_text(encoding="utf-8"))
COUNTERPARTS = {name: Counterpart(entry["why"], tuple(entry.get("here", ()))) for name, entry in _FILE.items()}
