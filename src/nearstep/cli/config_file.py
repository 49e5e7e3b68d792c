"""How a settings file is read: flat YAML, one `name: value` for each setting."""

from collections.abc import Collection
from pathlib import Path

from nearstep.common.errors import ConfigError


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
        raise ConfigError(f"the settings file {path} is no YAML: {error}") from error
    if problems:
        raise ConfigError("\n".join(problems))
    return settings
