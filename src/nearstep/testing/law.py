"""What a law is, and how an object is held to the laws of its axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nearstep.common.errors import ConfigError, ConformanceError

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Law(Generic[Subject]):
    """Something that holds for every object of an axis, or for most: one that is not `universal` may be skipped.

    The first law of an axis is its protocol, so that the others may rely on it.
    """

    name: str
    statement: str
    counterexample: Callable[[Subject], str | None]  # what breaks it, in words; None where it holds
    universal: bool = True
    applies: Callable[[Subject], bool] = lambda _: True  # whether the object says that it can do this at all


@dataclass(frozen=True)
class CheckResult:
    """What an object was held to: names and statements of the laws that hold, and the names of those left out, by
    the user or because the object does not offer what they are about."""

    subject: str
    held: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]
    not_offered: tuple[str, ...] = ()  # laws of what the object says that it cannot do

    def lines(self) -> list[str]:
        """The result for a reader: a summary, then one line for each law."""
        width = max(len(name) for name, _ in self.held)
        left_out = f", {len(self.skipped)} skipped ({', '.join(self.skipped)})" if self.skipped else ""
        if self.not_offered:
            left_out += f", {len(self.not_offered)} of what it does not offer ({', '.join(self.not_offered)})"
        laws = [f"  {name:<{width}}  {statement}" for name, statement in self.held]
        return [f"{self.subject}: {len(self.held)} laws hold{left_out}", *laws]


def hold(what: str, subject: Any, laws: Sequence[Law[Any]], skip: Sequence[str]) -> CheckResult:
    """Check the laws in order. Raises ConformanceError at the first that is broken, with its counterexample.

    An exception that the object raises under a law breaks it, and is the cause of the error. Raises ConfigError where
    `skip` names no law, or a universal one.
    """
    _check_skip(laws, skip)
    due = [law for law in laws if law.name not in skip]
    held: list[tuple[str, str]] = []
    not_offered: list[str] = []
    for law in due:
        try:
            applies = law.applies(subject)
            found = law.counterexample(subject) if applies else None
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise ConformanceError(_message(what, law, found)) from error
        if found is not None:
            raise ConformanceError(_message(what, law, found))
        if applies:
            held.append((law.name, law.statement))
        else:
            not_offered.append(law.name)
    return CheckResult(what, tuple(held), tuple(skip), tuple(not_offered))


def _check_skip(laws: Sequence[Law[Any]], skip: Sequence[str]) -> None:
    optional = [law.name for law in laws if not law.universal]
    for name in skip:
        if name not in optional:
            known = name in [law.name for law in laws]
            reason = "is universal: training relies on it" if known else "is no law here"
            raise ConfigError(f"law {name!r} {reason}; these may be skipped: {', '.join(optional) or 'none'}")


def _message(what: str, law: Law[Any], found: str) -> str:
    advice = "" if law.universal else f"\n  not universal: skip it (skip={law.name}) if this is meant"
    return f"{what} breaks the law {law.name!r}: {law.statement}.\n  counterexample: {found}{advice}"
