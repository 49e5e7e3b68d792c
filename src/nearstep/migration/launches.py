"""Which library a command starts, and the settings that it gives."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import yaml

from nearstep.migration.foreign import Foreign

DECOUPLED = ("vf_learning_rate", "num_vf_epochs", "vf_update_frequency")  # of seed A's draft, under the name DPPO
PASSED_ON = re.compile(r"\$[@*]|\$\{@.*\}")  # what a script was given itself
OF_VERL = ("ppo_trainer", "ppo_megatron_trainer")  # its own files, of its defaults
TRL_SCRIPT = re.compile(r"(ppo|ppo_\w+|dppo)\.py")


def launch(words: Sequence[str]) -> Foreign | None:
    """The settings of a command; None for one that starts no library known here."""
    own = [word for word in words if not PASSED_ON.fullmatch(word)]
    found = _launch(own)
    if found is None or len(own) == len(words):
        return found
    return replace(found, notes=(*found.notes, "flags that the script was given itself go behind the command"))


def _launch(words: Sequence[str]) -> Foreign | None:
    for place, word in enumerate(words):
        name = PurePath(word).name
        if word.startswith("openrlhf.cli.train_ppo") or name in ("train_ppo.py", "train_ppo_ray.py"):
            return Foreign("openrlhf", _flags(words[place + 1 :]))
        if word.startswith("verl.trainer.main_ppo") or name == "main_ppo.py":
            return Foreign("verl", _overrides(words[place + 1 :]), tuple(_other_files(words[place + 1 :])))
        if word == "--stage=trl_ppo" or (word == "--stage" and words[place + 1 : place + 2] == ["trl_ppo"]):
            flags = [each for each in words[_first_flag(words) :] if not each.endswith(".py")]
            return Foreign("mindspeed", _flags(flags))
        if TRL_SCRIPT.fullmatch(name):
            return _trl(name, words[:place], words[place + 1 :])
    return None


def _trl(script: str, before: Sequence[str], after: Sequence[str]) -> Foreign:
    """TRL's example scripts; `dppo.py` is the decoupled draft where it sets a critic apart."""
    launcher = {name: value for name, value in _flags(before).items() if name in LAUNCHERS}
    flags = _flags(after)
    if script.startswith("dppo"):
        kind = "decoupled_draft" if any(name in flags for name in DECOUPLED) else "trl_dppo"
    else:
        kind = "trl"
    return Foreign(kind, {**launcher, **flags})


LAUNCHERS = ("num_processes", "nproc_per_node", "config_file")


def _first_flag(words: Sequence[str]) -> int:
    return next((place for place, word in enumerate(words) if word.startswith("--")), len(words))


def _flags(words: Sequence[str]) -> dict[str, object]:
    """`--name value …` and `--name=value`; a flag alone is true. A later one of the same name wins."""
    found: dict[str, object] = {}
    name = ""
    for word in words:
        if re.fullmatch(r"--?[A-Za-z][\w.-]*(=.*)?", word, re.DOTALL) and not re.fullmatch(r"-\d.*", word):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            found[name] = value if equals else True
        elif name:
            before = found[name]
            found[name] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


def _overrides(words: Sequence[str]) -> dict[str, object]:
    """Hydra's `a.b=value`, `+a.b=value`; values as YAML reads them. Flags before them are hydra's own."""
    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.lstrip("+~").partition("=")
        if not equals or name.startswith("-"):
            continue
        found[name] = plain(value)
    return found


def _other_files(words: Sequence[str]) -> Iterator[str]:
    """Hydra's settings files beyond verl's own, whose values are not in the command."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = value if equals else "".join(words[place + 1 : place + 2])
        if flag in ("--config-name", "-cn") and name.removesuffix(".yaml") not in OF_VERL:
            yield f"--config-name {name} has settings of its own, which are not here: give nearstep migrate that file"


def plain(value: str) -> object:
    """A word as YAML reads it; the word itself where it is none."""
    try:
        return yaml.safe_load(value) if value else None
    except yaml.YAMLError:
        return value
