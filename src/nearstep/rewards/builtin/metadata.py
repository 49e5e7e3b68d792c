"""What every built-in reward is: what it says of itself, how its parameters are checked, how it is asked."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, TypeVar

from nearstep.common import plugins
from nearstep.common.errors import ConfigError, RewardError, shorten
from nearstep.config.conversion import UnfitError
from nearstep.config.options import Option, option_of
from nearstep.config.settings import convert
from nearstep.rewards.builtin.columns import Values, need_column, read_texts, where_given
from nearstep.rewards.builtin.text import texts_of

T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """The facts of a built-in reward; what it measures is the docstring of its class.

    `low` and `high` bound every value. `needs` names columns and parameters that must be there. `gaming` says how
    a policy can earn it without being better. `package` is the library that does the work, `extra` what installs it.
    """

    gaming: str
    low: int = 0
    high: int = 1
    needs: str = ""
    package: str = ""
    extra: str = ""

    @property
    def range(self) -> str:
        """The range of the values in words."""
        return f"{self.low} to {self.high}"


class BuiltIn(ABC):
    """A reward function that nearstep brings along: a frozen dataclass whose fields are its parameters."""

    __name__: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    metadata: ClassVar[Metadata]

    @abstractmethod
    def __call__(self, *args: Any, **columns: Any) -> Values:
        """One value per completion, None where a row lacks what the reward needs; called with keywords as TRL calls."""

    def __post_init__(self) -> None:
        """Check the parameters; lists become tuples. Raises a ConfigError that lists those of the reward."""
        for parameter in parameters(type(self)):
            value = vars(self)[parameter.name]
            try:
                object.__setattr__(self, parameter.name, convert(value, parameter, texts=False))
            except UnfitError as unfit:
                problem = f"{parameter.name} = {shorten(value)} must be {unfit}"
                raise ConfigError(f"{self.__name__}: {problem}. {parameter_list(type(self))}") from None

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: the parameters, not the models and processes that it holds by now."""
        return {parameter.name: vars(self)[parameter.name] for parameter in parameters(type(self))}

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if its library or a column that it reads is not there."""
        self.need_package()
        for parameter, name in self.columns().items():
            if name is not None:
                need_column(self.__name__, parameter, name, columns)

    def columns(self) -> dict[str, Any]:
        """The columns that it reads, by the parameters that name them; None for one that is not wanted."""
        return {p.name: vars(self)[p.name] for p in parameters(type(self)) if "column" in p.metadata}

    def need_package(self) -> None:
        """Raise a RewardError that names the extra, if the library behind the reward is not installed."""
        if self.metadata.package:
            wanted = f"reward {self.__name__!r}"
            plugins.need_package(self.metadata.package, self.metadata.extra, wanted, RewardError)


class TextReward(BuiltIn):
    """A reward that sees the text of a completion and nothing else."""

    @abstractmethod
    def value(self, text: str) -> float:
        """What a text is worth."""

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        self.need_package()
        return [self.value(text) for text in texts_of(completions)]


class ColumnReward(BuiltIn):
    """A reward of a text beside what its row holds in the one column that it reads; None where the cell is empty."""

    @abstractmethod
    def value(self, text: str, cell: list[str]) -> float | None:
        """What a text is worth beside the texts of its cell, None where these say nothing."""

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        self.need_package()
        (name,) = self.columns().values()
        cells = read_texts(self.__name__, name, columns)
        return where_given(texts_of(completions), cells, self.value)


def required(help: str) -> Any:
    """A parameter without a default."""
    return dataclasses.field(metadata={"option": Option(help)})


def column_name(default: T, help: str) -> T:
    """A parameter that names a column, without which the reward cannot work."""
    return dataclasses.field(default=default, metadata={"option": Option(help), "column": True})


def check_order(reward: BuiltIn, low: str, high: str) -> None:
    """Raise a ConfigError if the lower end of a range lies above its upper end."""
    values = vars(reward)
    if values[low] > values[high]:
        raise ConfigError(f"{reward.__name__}: {low} = {values[low]} is more than {high} = {values[high]}")


def name_of(reward: type[BuiltIn]) -> str:
    """The name under which a built-in reward is asked for and reported."""
    return str(vars(reward)["__name__"])


def parameters(reward: type[BuiltIn]) -> list[Field[Any]]:
    """The parameters of a built-in reward, in the order in which its class takes them."""
    return sorted(dataclasses.fields(reward), key=lambda parameter: parameter.kw_only is True)


def parameter_list(reward: type[BuiltIn]) -> str:
    """All parameters of a built-in reward in a sentence for error messages."""
    entries = [f"{parameter_entry(p)} ({option_of(p).help})" for p in parameters(reward)]
    return f"Its parameters: {'; '.join(entries)}." if entries else "It has no parameters."


def parameter_entry(parameter: Field[Any]) -> str:
    """A parameter with its default, as one writes it on the command line; … stands for what must be given."""
    value = parameter.default
    if value is dataclasses.MISSING:
        return f"{parameter.name}=…"
    if isinstance(value, tuple):
        return f"{parameter.name}={','.join(map(str, value))}"
    shown = str(value).lower() if isinstance(value, bool) or value is None else value
    return f"{parameter.name}={shown}"
