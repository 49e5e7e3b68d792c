"""How settings are declared, converted and checked, so that every problem is told at once.

Standard library only: a configuration can be read and refused before anything heavy is imported.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from types import MappingProxyType, NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.places import expanded
from nearstep.common.secrets import HIDDEN, may_hold_a_secret
from nearstep.common.spelling import nearest
from nearstep.config.conversion import OR_NONE, TemplateKeywords, UnfitError, as_type
from nearstep.config.old_names import OF_TRAINING, OldNames
from nearstep.config.options import Entries, Notes, Option, Verbatim, option_of
from nearstep.config.options import option as option

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """What is wrong, in words, and the settings that it depends on."""

    text: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a configuration says about itself beside its fields, which are all made by `option`."""

    old_names: ClassVar[OldNames] = OF_TRAINING
    # Kept apart from the fields: transformers' HfArgumentParser overwrites the types in those that it reads.
    types: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def problems(self) -> Iterable[Problem]:
        """Values that clash. Types and limits are checked before."""
        return ()

    def remarks(self) -> Iterable[str]:
        """What is allowed and yet hardly meant, such as a setting without effect."""
        return ()


SettingsT = TypeVar("SettingsT", bound=Settings)


def sections(*titled: tuple[str, type[Settings]]) -> tuple[tuple[str, str], ...]:
    """Title and first setting of each part of a configuration, for `--help`."""
    return tuple((title, next(iter(part.__annotations__))) for title, part in titled)


def without_effect(settings: Settings, *rules: tuple[str, bool, tuple[str, ...]]) -> Iterator[str]:
    """A sentence for every setting that was changed although, by a rule that applies, it has no effect.

    A rule is a reason, whether it applies, and the names of the settings that mean nothing then.
    """
    changed = {
        setting.name for setting in dataclasses.fields(settings) if vars(settings)[setting.name] != setting.default
    }
    for reason, applies, names in rules:
        if applies:
            yield from (f"{name} has no effect {reason}" for name in names if name in changed)


def accepts_old_names(cls: type[SettingsT]) -> type[SettingsT]:
    """Let a dataclass check itself when it is made, and take other libraries' names for its fields.

    Raises ConfigError with every problem; warns of old names and of settings without effect.
    """
    cls.types = MappingProxyType(_types(cls))
    for setting in dataclasses.fields(cls):
        inner = _without_none(cls.types[setting.name])
        if get_origin(inner) is tuple:
            setting.metadata = MappingProxyType(Notes(option_of(setting), action=Entries))
        if inner == TemplateKeywords:
            setting.metadata = MappingProxyType(Notes(option_of(setting), action=Verbatim))
    fill = cls.__init__

    @functools.wraps(fill)
    def check_and_fill(self: SettingsT, **given: object) -> None:
        findings = _examine(cls, given, texts=False)
        _refuse(findings.problems)
        fill(self, **findings.values)
        for note in [*findings.notes, *self.remarks()]:
            warnings.warn(note, stacklevel=2)

    cls.__init__ = check_and_fill  # type: ignore[method-assign, assignment]
    return cls


def with_defaults(defaults: Mapping[str, object]) -> Callable[[type[SettingsT]], type[SettingsT]]:
    """Make an empty subclass of a configuration one with other defaults: the same fields, types and limits."""

    def redeclare(cls: type[SettingsT]) -> type[SettingsT]:
        settings = {setting.name: setting for setting in dataclasses.fields(cls)}
        cls.__annotations__ = {name: cls.types[name] for name in defaults}
        for name, default in defaults.items():
            setattr(cls, name, field(default=default, metadata=settings[name].metadata))
        return accepts_old_names(dataclass(frozen=True, kw_only=True)(cls))

    return redeclare


def _types(cls: type[Settings]) -> dict[str, Any]:
    """The declared type of every field, as a base class noted it where one did."""
    own = vars(cls).get("__annotations__", {})
    return {
        setting.name: own.get(setting.name, cls.types.get(setting.name, setting.type))
        for setting in dataclasses.fields(cls)
    }


def _without_none(annotation: Any) -> Any:
    """X of `X | None`; anything else as it is."""
    if get_origin(annotation) not in OR_NONE:
        return annotation
    return next(choice for choice in get_args(annotation) if choice is not NoneType)


def _nothing(settings: Settings) -> Iterable[Problem]:
    return ()


def from_mapping(
    cls: type[SettingsT],
    raw: Mapping[str, object],
    *,
    texts: bool,
    found: Sequence[Problem] = (),
    further: Callable[[SettingsT], Iterable[Problem]] = _nothing,
) -> SettingsT:
    """Make settings from names and values; with `texts`, strings are converted to the type of their field.

    `found` are problems met while reading, `further` looks for more than the class itself does: all of them
    are told in the same ConfigError.
    """
    findings = _examine(cls, raw, texts=texts, found=found, further=further)
    _refuse(findings.problems)
    for note in findings.notes:
        warnings.warn(note, stacklevel=2)
    return cls(**findings.values)


def current_name(name: str, old: OldNames = OF_TRAINING) -> str:
    """The field that a name means: dashes are underscores, and names of other libraries are translated."""
    name = name.replace("-", "_")
    return old.renamed.get(name, name)


@dataclass(frozen=True)
class _Findings:
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _examine(
    cls: type[SettingsT],
    raw: Mapping[str, object],
    *,
    texts: bool,
    found: Sequence[Problem] = (),
    further: Callable[[SettingsT], Iterable[Problem]] = _nothing,
) -> _Findings:
    findings = _read(cls, raw, texts)
    problems = [*found, *findings.problems]
    broken = {name for problem in problems for name in problem.fields}
    draft = _unchecked(cls, findings.values)
    # A rule that rests on a broken setting would check the default that stands in for it.
    rules = [*draft.problems(), *further(draft)]
    problems += [rule for rule in rules if broken.isdisjoint(rule.fields)]
    return dataclasses.replace(findings, problems=problems)


def _read(cls: type[SettingsT], raw: Mapping[str, object], texts: bool) -> _Findings:
    """Names resolved and values converted, before any rule."""
    settings = {setting.name: setting for setting in dataclasses.fields(cls)}
    regions = [value for given, value in raw.items() if current_name(given, cls.old_names) == "trust_region"]
    default = [setting.default for name, setting in settings.items() if name == "trust_region"]
    old = cls.old_names.under(next(iter(regions + default), None))
    spelled: dict[str, str] = {}
    findings = _Findings()
    for given, value in raw.items():
        name = current_name(given, old)
        if name in spelled:
            text = f"{spelled[name]} and {given} are the same setting: give one"
            findings.problems.append(Problem(text, (name,)))
        elif name in settings:
            spelled[name] = given
            if name != given.replace("-", "_"):
                findings.notes.append(f"{given} is called {name} here")
            value = _today(name, given, value, old, findings.notes)
            if isinstance(value, str) and HIDDEN in value:
                text = f"{given} was left out of this file, for it may hold a secret: give --{name} again"
                findings.problems.append(Problem(text, (name,)))
                continue
            try:
                findings.values[name] = _fit(value, cls.types[name], option_of(settings[name]), texts)
            except UnfitError as unfit:
                findings.problems.append(Problem(f"{given}{_repeated(given, value)} must be {unfit}", (name,)))
        elif (retired := old.why_absent(name)) is None:
            findings.problems.append(Problem(f"unknown setting {given}{_nearest(name, settings, old)}"))
        elif retired.is_harmless(value):
            findings.notes.append(f"{given} has no effect: {retired.sentence}")
        else:
            findings.problems.append(Problem(f"{given}{_repeated(given, value)}: {retired.sentence}"))
    return findings


def _repeated(given: str, value: object) -> str:
    """A value as a message repeats it: not where it may be a secret."""
    return "" if may_hold_a_secret(given) else f" = {shorten(value)}"


def _today(name: str, given: str, value: object, old: OldNames, notes: list[str]) -> object:
    """The value by its name here, where it has another one elsewhere."""
    values = old.values.get(name, {})
    if not isinstance(value, str) or value not in values:
        return value
    notes.append(f"{given} {value} is called {values[value]} here")
    return values[value]


def _unchecked(cls: type[SettingsT], values: Mapping[str, object]) -> SettingsT:
    draft = object.__new__(cls)
    for setting in dataclasses.fields(cls):
        object.__setattr__(draft, setting.name, values.get(setting.name, setting.default))
    return draft


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{count} in the settings:", *(f"  - {problem.text}" for problem in problems)]))


def _nearest(name: str, settings: Iterable[str], old: OldNames) -> str:
    near = nearest(name.replace("-", "_"), [*settings, *old.renamed])
    return f"; did you mean {current_name(near, old)}?" if near else "; there is none with a similar name"


def convert(value: object, setting: Field[Any], texts: bool) -> object:
    """`value` as the type of a field and within its limits; with `texts`, text is converted. Else an UnfitError."""
    return _fit(value, setting.type, option_of(setting), texts)


def _fit(value: object, annotation: Any, limits: Option, texts: bool) -> object:
    converted = as_type(value, annotation, texts)
    if not limits.allows(converted):
        raise UnfitError(limits.limits())
    if limits.is_place:
        if isinstance(converted, tuple):
            return tuple(map(expanded, converted))
        return expanded(converted) if isinstance(converted, str) else converted
    return converted
