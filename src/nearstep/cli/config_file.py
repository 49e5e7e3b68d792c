"""How a settings file is read: flat YAML, one `name: value` for each setting."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from nearstep.common.errors import ConfigError

if TYPE_CHECKING:
    import yaml


def read_config_file(path: Path, mappings: Collection[str] = ()) -> dict[str, object]:
    """The settings in a file, typed as YAML types them; those in `mappings` may be written as mappings.

    Raises ConfigError with the lines that are no settings.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"the settings file {path} holds no `name: value` lines")
        constructor = yaml.SafeLoader("")
        settings: dict[str, object] = {}
        problems = []
        for key, value in root.value:
            name = str(key.value)
            line = f"{path}, line {key.start_mark.line + 1}: {name}"
            if name in settings:
                problems.append(f"{line} stands there twice")
            elif not isinstance(key, yaml.ScalarNode) or (isinstance(value, yaml.MappingNode) and name not in mappings):
                problems.append(f"{line} is nested; write every setting as `name: value` at the margin")
            else:
                settings[name] = constructor.construct_object(value, deep=True)
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file {path} is no UTF-8 text: byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the settings file {path} is no YAML: {_where(error)}") from None  # it quotes the line
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _where(error: "yaml.YAMLError") -> str:
    """What is wrong and where, without the line itself, which may hold a secret."""
    import yaml

    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it holds a character that YAML does not allow"
    mark = error.problem_mark
    said = " ".join(part for part in (error.context, error.problem) if part)
    said = re.sub(r"'[^']{3,}'", "'…'", said)  # a word of the line, not a sign of YAML
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
