"""How a token or key gets in: by an environment variable, never by a setting, and never into a message."""

import os

from nearstep.common.errors import ConfigError


class Secret:
    """A text that does not show in any representation."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


def token_from(variable: str) -> str:
    """The token in an environment variable. Raises ConfigError if it is not set."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"the environment variable {variable}, which must hold a token, is not set")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"the token in the environment variable {variable} has characters that no header can carry")
    return token
