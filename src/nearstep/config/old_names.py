"""Which names other libraries gave to our settings, and which of their settings have no counterpart here.

They stand in `old_names.toml`, with their sources.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

DPPO = (
    "the name has two meanings: `decoupled` (DecoupledPPOConfig) puts the critic on an optimizer of its own, "
    "`divergence` (DivergencePPOConfig) replaces the clip by a divergence; both are trained by `ppo` (PPOTrainer)"
)
# What a launcher asks for that has a setting here.
SHARDED = "the networks of nearstep ppo are sharded by dp_shard (FSDP2), over the processes of torchrun or --nproc"


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
    families: tuple[tuple[re.Pattern[str], Retired], ...] = ()  # whole families of names, as patterns
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by setting: theirs → ours
    by_region: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by trust region: further names

    def under(self, region: object) -> "OldNames":
        """The names where this is the trust region: TRL's thresholds mean the clip's or a divergence's."""
        further = self.by_region.get(str(region), {})
        return replace(self, renamed={**self.renamed, **further}) if further else self

    def why_absent(self, name: str) -> Retired | None:
        """Why there is no such setting, where that is known of it or of its family."""
        of_family = (retired for pattern, retired in self.families if pattern.fullmatch(name))
        return self.retired.get(name) or next(of_family, None)


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


def read_names(names: Mapping[str, Any]) -> OldNames:
    """The names of a command, or of a library, as a file has them."""
    retired = {name: _retired(entry) for name, entry in names["retired"].items()}
    families = tuple((re.compile(entry["names"]), _retired(entry)) for entry in names.get("families", ()))
    return OldNames(names["renamed"], retired, families, names["values"], names.get("by_region", {}))


def _retired(entry: str | Mapping[str, Any]) -> Retired:
    if isinstance(entry, str):
        return Retired(entry)
    harmless = entry.get("harmless")
    return Retired(entry["why"], None if harmless is None else tuple(map(_plain, harmless)))


_FILE = tomllib.loads((files(__package__) / "old_names.toml").read_text(encoding="utf-8"))

OF_TRAINING = read_names(_FILE["training"])
OF_PREPARE = read_names(_FILE["prepare"])
OF_GENERATION = read_names(_FILE["generation"])
OF_EVALUATION = read_names(_FILE["evaluation"])
OF_CLASSIC = read_names(_FILE["classic"])
# A reward model's own settings, which PPO knows under another name or not at all.
_OWN = {"backend", "max_seq_length", "resume_from_checkpoint", "recipe"}
OF_REWARD_MODELS = OldNames(
    {name: ours for name, ours in OF_TRAINING.renamed.items() if name not in _OWN} | _FILE["reward_models"]["renamed"],
    {name: retired for name, retired in OF_TRAINING.retired.items() if name not in _OWN}
    | {name: _retired(entry) for name, entry in _FILE["reward_models"]["retired"].items()},
    OF_TRAINING.families,
)
