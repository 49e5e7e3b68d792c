"""How a given value becomes what the type of a setting asks for: from Python as it is, from a text by its meaning."""

import json
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from nearstep.common.places import expanded
from nearstep.common.template_kwargs import template_kwargs

OR_NONE = (types.UnionType, Union)  # what makes X | None; of a Literal it is typing's own

# Pairs of names, each given as ours=theirs or all of them as a mapping.
Names: TypeAlias = tuple[tuple[str, str], ...]


class ModelName(str):
    """A folder or hub name of a model, or the word true or false, for all that the user names."""


# Keywords for chat templates: a mapping, or its JSON in a text.
TemplateKeywords: TypeAlias = Mapping[str, Any]


_LISTED = re.compile(r"[\w./:~$-]+(,\s*[\w./:~$-]+)+,?")  # names with commas between them, and nothing else


class UnfitError(ValueError):
    """A value does not fit its field; says what would."""


def as_type(value: object, annotation: Any, texts: bool) -> object:
    """`value` as the annotated type, or UnfitError."""
    if annotation == Names:
        return _as_names(value)
    if annotation == TemplateKeywords:
        return _as_keywords(value)
    choices = get_args(annotation)
    is_none = value is None or (isinstance(value, str) and value.lower() in ("none", "null"))
    if get_origin(annotation) in OR_NONE:
        (inner,) = (choice for choice in choices if choice is not types.NoneType)
        return None if is_none else as_type(value, inner, texts)
    if get_origin(annotation) is Literal:
        if value in choices:
            return choices[choices.index(value)]
        raise UnfitError("one of " + ", ".join(choices))
    if get_origin(annotation) is tuple:
        entries = () if is_none else value if isinstance(value, list | tuple) else (value,)
        for entry in entries:
            if isinstance(entry, str) and _LISTED.fullmatch(entry) and not os.path.exists(expanded(entry)):
                raise UnfitError("separate entries: separate them by spaces (in Python and YAML: a list)")
        return tuple(as_type(entry, choices[0], texts) for entry in entries)
    return _SCALARS[annotation](value, texts)


def _as_names(value: object) -> Names:
    """Pairs of a mapping, of `ours=theirs` texts, or of a JSON object in a text."""
    unfit = UnfitError("names such as prompt=question")
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            raise unfit from None
    if value is None or value == "none":
        return ()
    pairs: list[Any]
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        entries = value if isinstance(value, list | tuple) else [value]
        pairs = [entry.split("=", 1) if isinstance(entry, str) else entry for entry in entries]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(n, str) and n for n in pair):
            raise unfit
    return tuple((ours, theirs) for ours, theirs in pairs)


def _as_keywords(value: object) -> TemplateKeywords:
    try:
        return template_kwargs(value)
    except ValueError as error:
        raise UnfitError(str(error)) from None


def _as_bool(value: object, texts: bool) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if texts and isinstance(value, str) else ""
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise UnfitError("true or false")


def _as_float(value: object, texts: bool) -> float:
    if texts and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UnfitError("a number") from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnfitError("a number")
    if not math.isfinite(value):
        raise UnfitError("a finite number")
    return float(value)


def _as_int(value: object, texts: bool) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if texts and isinstance(value, str | float):
        number = _as_float(value, texts)
        if number.is_integer():
            return int(number)
    raise UnfitError("a whole number")


def _as_text(value: object, texts: bool) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise UnfitError("text (in quotes)" if texts else "text")
    if not value:
        raise UnfitError("text that is not empty")
    return value


def _as_model_name(value: object, texts: bool) -> ModelName:
    text = str(value) if isinstance(value, bool) else _as_text(value, texts)
    return ModelName(text.lower() if text.lower() in ("true", "false") else text)


_SCALARS: dict[Any, Callable[[object, bool], object]] = {
    bool: _as_bool,
    int: _as_int,
    float: _as_float,
    str: _as_text,
    ModelName: _as_model_name,
}
