"""Settings as plain values, as YAML and JSON hold them, and which of them are not the defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nearstep.config.conversion import Names
from nearstep.config.settings import Settings


def plain_settings(config: Settings, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Every setting by name: tuples as lists, pairs of names as mappings. `given` stands over those of `config`."""
    values = {setting.name: vars(config)[setting.name] for setting in dataclasses.fields(config)} | dict(given or {})
    return {name: _plain(value, config.types.get(name)) for name, value in values.items()}


def plain_defaults(kind: type[Settings]) -> dict[str, Any]:
    """The default of every setting of a configuration, in the same form."""
    return {setting.name: _plain(setting.default, kind.types[setting.name]) for setting in dataclasses.fields(kind)}


def changed_settings(settings: Mapping[str, Any], kind: type[Settings]) -> dict[str, dict[str, Any]]:
    """Value and default of each plain setting that is not the default; settings that `kind` does not have are left
    out.

    >>> from nearstep.config.ppo import PPOConfig
    >>> changed_settings({"kl_coef": 0.1, "seed": 0, "of_an_older_nearstep": 1}, PPOConfig)
    {'kl_coef': {'value': 0.1, 'default': 0.05}}
    """
    defaults = plain_defaults(kind)
    return {
        name: {"value": value, "default": defaults[name]}
        for name, value in settings.items()
        if name in defaults and value != defaults[name]
    }


def _plain(value: object, kind: object) -> object:
    if kind == Names and isinstance(value, tuple):
        return dict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
