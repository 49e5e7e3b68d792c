"""Which errors nearstep raises at its user: each says what was wrong, where, and what to do."""

import re


class NearstepError(Exception):
    """Base of every error that is meant for the user rather than for us. Its notes (add_note) are part of its text."""

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


class ConformanceError(NearstepError, AssertionError):
    """An object breaks a law of its axis. Gives the law and a counterexample."""


def shorten(value: object, limit: int = 200) -> str:
    """Show `value` in an error message, cut to `limit` characters and without addresses in memory."""
    text = repr(value) if isinstance(value, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
