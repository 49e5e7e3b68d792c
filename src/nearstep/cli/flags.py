"""How words of the command line become settings by name, still as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_origin

from nearstep.common.places import expanded
from nearstep.common.secrets import may_hold_a_secret
from nearstep.config.conversion import ModelName, Names
from nearstep.config.settings import Problem, Settings, current_name


@dataclass(frozen=True)
class Flags:
    """What the command line says: settings as they were spelled, the file that it names, and what is no setting."""

    values: dict[str, object]
    config_file: Path | None
    recipe: str | None
    problems: tuple[Problem, ...]


def read_flags(cls: type[Settings], words: Sequence[str]) -> Flags:
    """Read `--name value …`, `--name=value`, bare `--name` and `--no-name` for the fields of `cls`.

    A later flag beats an earlier one of the same spelling. Values are not converted here.
    """
    types = cls.types
    old = cls.old_names
    values: dict[str, object] = {}
    problems = [Problem(f"{word} belongs to no setting; write --name value") for word in _before_flags(words)]
    for name, texts in _flags(words):
        kind = types.get(current_name(name, old))
        switched_off = current_name(name.replace("-", "_").removeprefix("no_"), old)
        if len(texts) > 1 and kind is not None and not _takes_several(kind):
            problems.append(_stray(name, texts, current_name(name, old)))
        elif texts:
            values[name] = texts if len(texts) > 1 else texts[0]
        elif kind == tuple[ModelName, ...] | None:
            values[name] = True
        elif _takes_several(kind):
            values[name] = ()
        elif kind is bool or (kind is None and types.get(switched_off) is not bool):
            values[name] = True
        elif kind is None:
            values[switched_off] = False
        else:
            problems.append(Problem(f"--{name} needs a value", (current_name(name, old),)))
    config_file, recipe = values.pop("config", None), values.pop("recipe", None)
    if config_file is not None and not isinstance(config_file, str):
        problems.append(Problem("--config takes one file"))
        config_file = None
    if recipe is not None and not isinstance(recipe, str):
        problems.append(Problem("--recipe takes one name"))
        recipe = None
    return Flags(values, Path(expanded(config_file)) if config_file else None, recipe, tuple(problems))


def _takes_several(kind: object) -> bool:
    """Whether a setting has several values: a tuple, or a tuple or nothing."""
    return kind == Names or any(get_origin(choice) is tuple for choice in (kind, *get_args(kind)))


def _stray(name: str, texts: Sequence[str], setting: str) -> Problem:
    """Words behind the one value of a setting."""
    extra = " ".join(texts[1:])
    if may_hold_a_secret(setting):
        return Problem(f"--{name} takes one value, here it has {len(texts)}", (setting,))
    return Problem(
        f"unexpected word {extra}: --{name} takes one value, here {texts[0]}; a value with blanks stands in quotes",
        (setting,),
    )


def _before_flags(words: Sequence[str]) -> list[str]:
    first = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:first])


def _flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next one. A negative number starts with one dash, a flag with two."""
    starts = [index for index, word in enumerate(words) if word.startswith("--")]
    for start, stop in pairwise([*starts, len(words)]):
        name, equals, value = words[start].removeprefix("--").partition("=")
        yield name, [value] * bool(equals) + list(words[start + 1 : stop])
