"""What is noted about one setting beside its type and default, in words that argparse takes too.

Standard library only.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, TypeAlias, TypeVar, get_args

from nearstep.common.errors import shorten
from nearstep.config.conversion import Names, UnfitError, as_type

T = TypeVar("T")
Number: TypeAlias = int | float


@dataclass(frozen=True)
class Option:
    """The description of a setting beside its type and default."""

    help: str
    above: Number | None = None
    at_least: Number | None = None
    below: Number | None = None
    at_most: Number | None = None
    is_place: bool = False  # text that may begin with ~ or $NAME: a folder, a file, or file.py:Name

    def limits(self) -> str:
        """The allowed range in words; empty where there is none."""
        limits = (
            ("above", self.above),
            ("at least", self.at_least),
            ("below", self.below),
            ("at most", self.at_most),
        )
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)

    def allows(self, value: object) -> bool:
        """Whether a number, or every number of a tuple, lies in the range; anything else does."""
        if isinstance(value, tuple):
            return all(self.allows(entry) for entry in value)
        if not isinstance(value, int | float):
            return True
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )


def option(
    default: T,
    help: str,
    *,
    above: Number | None = None,
    at_least: Number | None = None,
    below: Number | None = None,
    at_most: Number | None = None,
    is_place: bool = False,
) -> T:
    """A dataclass field with a line of help and the limits of its value."""
    return field(default=default, metadata=Notes(Option(help, above, at_least, below, at_most, is_place)))


def option_of(setting: Field[Any]) -> Option:
    """What `option` noted about a field."""
    noted: Option = setting.metadata["option"]
    return noted


class Notes(dict[str, Any]):
    """The metadata of a field: what argparse takes as keywords, and under "option", which is not listed, the Option.

    transformers' HfArgumentParser hands all that is listed on to argparse.
    """

    def __init__(self, noted: Option, **keywords: object) -> None:
        super().__init__(help=noted.help.replace("%", "%%"), **keywords)
        self._noted = noted

    def __missing__(self, name: str) -> Option:
        if name != "option":
            raise KeyError(name)
        return self._noted


class Verbatim(argparse.Action):
    """A flag for argparse whose text the class converts."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, type: Any, default: object = None, help: str | None = None
    ) -> None:
        super().__init__(option_strings, dest, default=default, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Note the text."""
        setattr(namespace, self.dest, values)


class Entries(argparse.Action):
    """A flag of several values for argparse, which knows no tuples: the words as they are, for the class to convert."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, type: Any, default: object = None, help: str | None = None
    ) -> None:
        super().__init__(option_strings, dest, nargs="*", type=_entry_converter(type), default=default, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Note the values."""
        setattr(namespace, self.dest, tuple(values))


def _entry_converter(annotation: Any) -> Callable[[str], object]:
    """From a word of the command line to an entry of a tuple."""

    def convert_entry(word: str) -> object:
        if annotation == Names:
            return word  # ours=theirs, which the class takes apart
        try:
            return as_type(word, get_args(annotation)[0], texts=True)
        except UnfitError as unfit:
            raise argparse.ArgumentTypeError(f"{shorten(word)} must be {unfit}") from None

    return convert_entry
