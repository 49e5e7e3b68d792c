"""Which errors nearstep raises at its user: each says what was wrong, where, and what to do."""

import re

from nearstep.common.secrets import without_secrets

MOST_OF_A_LINE = 2_000  # characters
MOST_OF_ALL = 20_000


class NearstepError(Exception):
    """Base of every error that is meant for the user rather than for us. Its notes (add_note) are part of its text.

    Whatever stands in its message, a value of a megabyte as well, lines and message are cut in their middle, and what
    logs in is taken out (see `common/secrets.py`).
    """

    def __init__(self, message: str = "") -> None:
        lines = [cut(line, MOST_OF_A_LINE) for line in without_secrets(message).split("\n")]
        super().__init__(cut("\n".join(lines), MOST_OF_ALL))

    def __str__(self) -> str:
        notes: list[str] = vars(self).get("__notes__", [])
        text = super().__str__()
        return " ".join([text.rstrip(".") + ".", *notes]) if notes else text


class ConfigError(NearstepError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another. Lists all problems at once."""


class DataError(NearstepError, ValueError):
    """A data set, row, or column cannot be used. Names the place."""


class ModelError(NearstepError, ValueError):
    """A model folder or object does not fit the role that it was given."""


class RewardError(NearstepError, ValueError):
    """A reward model or reward function failed or returned something that is no reward."""


class TrainingError(NearstepError, RuntimeError):
    """A run cannot go on: a gradient is not finite, or nothing can be written."""


class WaitError(TrainingError):
    """Something was awaited for longer than it may be. Says what, and which parts of it were still to come."""


class LostProcessError(TrainingError):
    """Another process of the run is gone. It is the consequence of something that the other process says."""


class LostEngineError(TrainingError):
    """An engine outside this process does not answer any more. Says which, what it was asked, and how often."""


class CheckpointError(NearstepError, RuntimeError):
    """A checkpoint is damaged, or does not belong to the run that would go on from it. Names the file."""


class ConformanceError(NearstepError, AssertionError):
    """An object breaks a law of its axis. Gives the law and a counterexample."""


def shorten(value: object, limit: int = 200) -> str:
    """Show `value` in an error message, cut to `limit` characters and without addresses in memory."""
    text = repr(value) if isinstance(value, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut(text: str, most: int) -> str:
    """A text without its middle where it is longer than `most` characters."""
    half = most // 2
    left_out = f"… {len(text) - 2 * half:,} characters left out …"
    return text if len(text) <= most else text[:half] + left_out + text[-half:]
