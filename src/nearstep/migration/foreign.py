"""What was found in a file of another library, and what each library calls our settings."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from nearstep.config.old_names import OldNames, read_names


@dataclass(frozen=True)
class Foreign:
    """Settings of another library by its own names, and what of the file could not be read."""

    library: str
    settings: Mapping[str, object]
    notes: tuple[str, ...] = ()
    place: str = ""  # where in the file they stand
    unread: Mapping[str, str] = field(default_factory=dict)  # settings that only a run of it knows → where, and how


@dataclass(frozen=True)
class Library:
    """What one library calls our settings, and its defaults where they are not ours."""

    title: str
    names: OldNames
    defaults: Mapping[str, object] = field(default_factory=dict)
    recipe: str | None = None


_FILE = tomllib.loads((files(__package__) / "libraries.toml").read_text(encoding="utf-8"))
_TITLES = {
    "openrlhf": ("OpenRLHF", None), "verl": ("verl", None), "mindspeed": ("MindSpeed-LLM", "mindspeed"),
    "trl": ("TRL's PPO, 0.12 to 1.12", "trl_parity"), "trl_dppo": ("TRL's divergence PPO, 1.7 to 1.8", "divergence"),
    "decoupled_draft": ("the draft of decoupled PPO for TRL", "decoupled"), "aligntune": ("AlignTune", None),
}  # fmt: skip


def _library(name: str) -> Library:
    title, recipe = _TITLES[name]
    table = _FILE["trl" if name == "decoupled_draft" else name]
    names = {
        "renamed": table["renamed"], "retired": table["lost"], "families": table.get("families", ()),
        "values": table["values"],
    }  # fmt: skip
    return Library(title, read_names(names), table["defaults"], recipe)


LIBRARIES: Mapping[str, Library] = {name: _library(name) for name in _TITLES}
