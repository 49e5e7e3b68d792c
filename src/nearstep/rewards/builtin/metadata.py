"""What every built-in reward says of itself, and how its parameters are declared and checked."""

import dataclasses
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from nearstep.common import plugins
from nearstep.common.errors import ConfigError, RewardError, shorten
from nearstep.config.conversion import UnfitError
from nearstep.config.options import Option, option_of
from nearstep.config.settings import convert

Values: TypeAlias = list[float | None]


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


@runtime_checkable
class BuiltIn(Protocol):
    """A reward function that nearstep brings along: a frozen dataclass whose fields are its parameters."""

    __name__: ClassVar[str]
    metadata: ClassVar[Metadata]

    def __call__(self, *args: Any, **columns: Any) -> Values:
        """One value per completion, None where a row lacks what the reward needs; called with keywords as TRL calls."""


def required(help: str) -> Any:
    """A parameter without a default."""
    return dataclasses.field(metadata={"option": Option(help)})


def settle(reward: BuiltIn) -> None:
    """Check the parameters of a reward as it is made; lists become tuples.

    Raises a ConfigError that lists the parameters of the reward.
    """
    for parameter in parameters(type(reward)):
        value = vars(reward)[parameter.name]
        try:
            object.__setattr__(reward, parameter.name, convert(value, parameter, texts=False))
        except UnfitError as unfit:
            problem = f"{parameter.name} = {shorten(value)} must be {unfit}"
            raise ConfigError(f"{reward.__name__}: {problem}. {parameter_list(type(reward))}") from None


def check_order(reward: BuiltIn, low: str, high: str) -> None:
    """Raise a ConfigError if the lower end of a range lies above its upper end."""
    values = vars(reward)
    if values[low] > values[high]:
        raise ConfigError(f"{reward.__name__}: {low} = {values[low]} is more than {high} = {values[high]}")


def parameters(reward: type[Any]) -> tuple[Field[Any], ...]:
    """The parameters of a built-in reward, in order."""
    return dataclasses.fields(reward)


def parameter_list(reward: type[Any]) -> str:
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


def fields_only(made: Any) -> dict[str, object]:
    """What is pickled of a frozen dataclass: its fields, not the models and processes that it holds by now."""
    return {field.name: vars(made)[field.name] for field in dataclasses.fields(made)}


def need_package(reward: BuiltIn) -> None:
    """Raise a RewardError that names the extra, if the library behind a reward is not installed."""
    plugins.need_package(reward.metadata.package, reward.metadata.extra, f"reward {reward.__name__!r}", RewardError)
