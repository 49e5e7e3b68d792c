"""What models may bring along beside weights: Python code that is run, and weights that are pickles.

Standard library only.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

_COMMIT = re.compile(r"[0-9a-f]{40}")
ALL, NONE = "true", "false"


@dataclass(frozen=True)
class Trust:
    """What the user allows.

    `code` names the models whose code is run: folders, hub names as org/name@COMMIT, or "true" for every folder that
    the user names; "false" reads models by the classes of transformers and passes their code over; None, nothing said,
    refuses models that bring code. `pickled_weights` lets `.bin` files be read, as tensors alone.
    """

    code: Sequence[str] | None = None
    pickled_weights: bool = False

    def for_unnamed(self) -> "Trust":
        """The same for a model that another one names, such as that under adapters: "true" does not mean it."""
        kept = None if self.code is None else tuple(entry for entry in self.code if entry != ALL)
        return dataclasses.replace(self, code=kept)

    def runs_code_of(self, name: str) -> bool:
        """Whether the code of this folder or hub name may be run."""
        if Path(name).is_dir():
            places = [Path(entry).expanduser().resolve() for entry in self.code or ()]
            return ALL in (self.code or ()) or Path(name).resolve() in places
        return self.commit_of(name) is not None

    def commit_of(self, name: str) -> str | None:
        """The commit at which a hub name's code may be run."""
        entries = [entry.rpartition("@") for entry in self.code or ()]
        return next((commit for known, _, commit in entries if known == name and _COMMIT.fullmatch(commit)), None)


@runtime_checkable
class TrustSettings(Protocol):
    """The two settings of every command that loads models."""

    @property
    def trust_remote_code(self) -> Sequence[str] | None:
        """See `Trust.code`."""

    @property
    def allow_pickled_weights(self) -> bool:
        """See `Trust.pickled_weights`."""


def trust_of(settings: TrustSettings) -> Trust:
    """What the settings of a command allow."""
    return Trust(settings.trust_remote_code, settings.allow_pickled_weights)


DEFAULT_TRUST = Trust()
