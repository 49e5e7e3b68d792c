"""How a built-in reward is written in a setting, as name:parameter=value,parameter=value, and read from it."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_origin

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.conversion import UnfitError
from nearstep.config.settings import convert
from nearstep.rewards.builtin.metadata import BuiltIn, name_of, parameter_list, parameters
from nearstep.rewards.builtin.other_names import COUNTERPARTS
from nearstep.rewards.builtin.table import BUILT_INS
from nearstep.rewards.judge_spec import PREFIX, judge_spec_problems

_IN_A_FILE = re.compile(r"\.py:\w+$")
# A comma ends a value only where the next parameter begins, so values may hold commas.
_NEXT = re.compile(r"(?<!\\),\s*(?=\w+=)")


def meaning(entry: str) -> Literal["built-in", "file", "model", "judge"]:
    """What a reward in a setting is: a built-in one, file.py:name, a reward model's folder or hub name, or a judge.

    A built-in reward goes before a folder of the same name, which is then written as ./name; a hub name is owner/name.
    """
    name = entry.partition(":")[0]
    if name in BUILT_INS:
        return "built-in"
    if entry.startswith(PREFIX):
        return "judge"
    if _IN_A_FILE.search(entry):
        return "file"
    if "/" in entry or Path(entry or "?").expanduser().is_dir():
        return "model"
    return "built-in" if name.isidentifier() else "file"


def read_spec(spec: str) -> BuiltIn:
    r"""The built-in reward that a text stands for.

    A list is written with commas. A comma of a value right before word= is written as \, to tell it from the next
    parameter. Raises a ConfigError, which lists the parameters, for an unknown name, parameter or unfit value.
    """
    name, _, written = spec.partition(":")
    if name not in BUILT_INS:
        raise ConfigError(f"{name!r} {absence(name)}")
    kind = BUILT_INS[name]
    known = {parameter.name: parameter for parameter in parameters(kind)}
    values: dict[str, object] = {}
    for part in _NEXT.split(written) if written else []:
        key, equals, text = part.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{name} has no parameter {shorten(key)}{_nearest(key, known)}. {parameter_list(kind)}")
        if key in values:
            raise ConfigError(f"{name}: {key} is given twice. {parameter_list(kind)}")
        values[key] = _value(text.replace("\\,", ","), known[key], kind)
    missing = [p.name for p in known.values() if p.default is dataclasses.MISSING and p.name not in values]
    if missing:
        raise ConfigError(f"{name} needs {missing[0]}: write {name}:{missing[0]}=…. {parameter_list(kind)}")
    return kind(**values)


def problems_of(entry: str) -> list[str]:
    """What is wrong with a built-in reward or a judge in a setting; nothing where it means anything else."""
    if meaning(entry) == "judge":
        return judge_spec_problems(entry)
    if meaning(entry) != "built-in":
        return []
    try:
        read_spec(entry)
    except ConfigError as error:
        return [str(error)]
    return []


def model_of(entry: str) -> str | None:
    """The folder or hub name of the model behind a reward in a setting, None where there is none."""
    if meaning(entry) != "built-in":
        return entry if meaning(entry) == "model" else None
    model = vars(read_spec(entry)).get("model")
    return None if model is None else str(model)


def absence(name: str) -> str:
    """Why there is no built-in reward of this name, and what there is instead."""
    if name in COUNTERPARTS:
        return f"is no built-in reward: {COUNTERPARTS[name].sentence}"
    near = difflib.get_close_matches(name, [*BUILT_INS, *COUNTERPARTS], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"is no built-in reward and no folder; {hint}nearstep rewards lists them"


def _value(text: str, parameter: Field[Any], kind: type[BuiltIn]) -> object:
    is_list = get_origin(parameter.type) is tuple
    given = [entry.strip() for entry in text.split(",") if entry.strip()] if is_list else text
    try:
        return convert(given, parameter, texts=True)
    except UnfitError as unfit:
        problem = f"{parameter.name} = {shorten(text)} must be {unfit}"
        raise ConfigError(f"{name_of(kind)}: {problem}. {parameter_list(kind)}") from None


def _nearest(key: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
