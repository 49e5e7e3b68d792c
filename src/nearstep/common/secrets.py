"""What may not be shown is taken out of texts, words of a command and settings before they are printed or written.

Standard library only. Every error of nearstep, its lines on standard error, run.yaml, records, model cards and what
trackers are given pass through here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
# Settings and flags whose value may log in, or be an address that does.
_SECRET_NAME = re.compile(r"(_url|_token_env|password|passwd|secret|api_?key|credentials?)$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_KEY$", re.IGNORECASE)
_SHORTEST = 8  # characters of a variable's value; shorter ones are words of any text
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|eyJ)[\w.-]{12,}")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}")
# A password may hold a slash that nobody escaped. Lengths are bounded, or a megabyte of text would take minutes.
_USER = re.compile(
    r"(?<!\w)(\w{1,20}://)[^/\s@?#'\"]{0,999}(?:/[^\s@?#'\"]{0,999})?@"
)  # a password may hold a slash that nobody escaped
_QUERY = re.compile(r"(?<!\w)(\w{1,20}://[^\s?#'\"]{0,999}\?)[^\s#'\"]+")
# Parts of a server's path that say what it does; any other may be the secret of a webhook.
_HARMLESS = re.compile(
    r"v\d+|api|scores?|rewards?|compute_(score|reward)|get_reward|predict|classify|pooling|health|chat|completions|"
    r"generate|models|embeddings"
)


def without_secrets(value: Any) -> Any:
    """A text without users, passwords and queries of addresses, tokens, and values of secret variables.

    Of mappings and lists every text; anything else is as it was.
    """
    return _without(value, _secrets_of_the_environment())


def _without(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        value = _BEARER.sub(rf"\1 {HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", value)))
        value = _TOKEN.sub(HIDDEN, value)
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, Mapping):
        return {name: _without(each, secrets) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without(each, secrets) for each in value)
    return value


def public_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they may be kept: an address of a server without what may be a secret, the rest likewise."""
    secrets = _secrets_of_the_environment()
    return {
        name: _without(value, secrets) if _kept_as_text(name, value) else public_address(value)
        for name, value in values.items()
    }


def _kept_as_text(name: str, value: Any) -> bool:
    """Whether it is no address that may log in."""
    return not (isinstance(value, str) and "://" in value and may_hold_a_secret(name))


def may_hold_a_secret(name: str) -> bool:
    """Whether what was given for this setting is not repeated in messages."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


def public_address(address: str) -> str:
    """A server by scheme, host, port, and its path where that is no secret."""
    try:
        url = urlsplit(address)
        host = f"{url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")
    except ValueError:
        return HIDDEN
    parts = [part for part in url.path.split("/") if part]
    path = url.path if all(_HARMLESS.fullmatch(part) for part in parts) else f"/{HIDDEN}"
    return host + path + (f"?{HIDDEN}" if url.query else "")


def secret_parts(address: str) -> list[str]:
    """What a server's answer, or a library's error, is not to repeat of an address, longest first."""
    try:
        url = urlsplit(address)
        path = [part for part in url.path.split("/") if part and not _HARMLESS.fullmatch(part)]
        found = [
            address,
            *path,
            url.path if path else "",
            url.username or "",
            url.password or "",
            url.query,
            url.fragment,
        ]
    except ValueError:
        found = [address]
    return sorted({each for part in found for each in (part, unquote(part)) if len(each) > 2}, key=len, reverse=True)


def shown_words(words: Sequence[str]) -> list[str]:
    """The words of a command as they may be kept; what follows a flag such as --hub_token is hidden as a whole.

    >>> shown_words(["train.py", "--hub_token", "abc", "--stop_token", "eos", "--reward_url=http://me:pw@host/x?key=1"])
    ['train.py', '--hub_token', '***', '--stop_token', 'eos', '--reward_url=http://host/***?***']
    """
    shown: list[str] = []
    secret = False
    for word in words:
        is_flag, (flag, equals, value) = word.startswith("-"), word.partition("=")
        if secret and not is_flag:
            shown.append(_shown(word))
        elif is_flag and equals and _hides(flag):
            shown.append(f"{flag}={_shown(value)}")
        else:
            shown.append(without_secrets(word))
        secret = (secret or _hides(flag)) if not is_flag else not equals and _hides(flag)
    return shown


def _hides(flag: str) -> bool:
    name = flag.lstrip("-")
    is_token = name.endswith("token") and name.replace("-", "_") != "stop_token"
    return is_token or (may_hold_a_secret(name) and not name.endswith("env"))


def _shown(value: str) -> str:
    return public_address(value) if "://" in value else HIDDEN


def _secrets_of_the_environment() -> list[str]:
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
    return sorted(found - {"true", "false"}, key=len, reverse=True)
