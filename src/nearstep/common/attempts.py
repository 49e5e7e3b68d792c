"""How several things are tried one after the other: a failure is noted, and all of them are raised at the end."""

from types import TracebackType

from nearstep.common.errors import NearstepError


class Attempt:
    """A context: what fails within goes to `failures`, with the name of the part, and the next part can be tried.

    Whoever gathers failures raises them in the end. Interrupts are no failures, nor are errors of `passing`.
    """

    def __init__(self, part: str | None, failures: list[str], passing: tuple[type[Exception], ...] = ()) -> None:
        self._part, self._failures, self._passing = part, failures, passing

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Note an error and go on; an interrupt goes its way."""
        if not isinstance(error, Exception) or isinstance(error, self._passing):
            return False
        self._failures.append(reason(error) if self._part is None else f"{self._part} ({reason(error)})")
        return True


def reason(error: Exception) -> str:
    """The error on one line, at most 400 characters, with its type where it is not meant for the user."""
    text = " ".join(str(error).split())[:400].rstrip(". ")
    return text if isinstance(error, NearstepError) else f"{type(error).__name__}: {text}"
