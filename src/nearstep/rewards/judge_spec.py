"""How a judge is written as a reward: judge:WHO, and behind it what its completions are compared with."""

import re
from dataclasses import dataclass
from pathlib import Path

from nearstep.common.errors import ConfigError
from nearstep.common.places import expanded
from nearstep.config.judges import JudgeConfig, is_url
from nearstep.config.settings import from_mapping

PREFIX = "judge:"
GROUP = "group"
SYNTAX = "write judge:WHO, and for win shares judge:WHO,against=COLUMN or judge:WHO,against=group"
_AGAINST = re.compile(r",\s*against=([\w.-]+)$")


@dataclass(frozen=True)
class JudgeSpec:
    """A judge's name, or its YAML file; `against` is a column, "group" for the responses to the same prompt, or None
    for grades."""

    who: str
    against: str | None

    @property
    def config(self) -> JudgeConfig:
        """Its settings. Raises ConfigError for a file that is not there, or settings that cannot be."""
        return judge_config(self.who)


def read_judge_spec(entry: str) -> JudgeSpec:
    """What `judge:…` stands for. Raises ConfigError where it is written otherwise."""
    written = entry.removeprefix(PREFIX)
    found = _AGAINST.search(written)
    who = written[: found.start()] if found else written
    if not who or (not found and re.search(r",\s*\w+=[\w.-]*$", who) and not is_url(who)):
        raise ConfigError(f"{entry}: {SYNTAX}; other settings of a judge stand in a YAML file")
    return JudgeSpec(expanded(who), found[1] if found else None)


def judge_config(who: str) -> JudgeConfig:
    """The settings in a YAML file, or those of a judge with nothing but a name. Raises ConfigError."""
    if not who.endswith((".yaml", ".yml")):
        return JudgeConfig(judge=who)
    import yaml

    path = Path(who).expanduser()
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the judge's settings {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the judge's settings {path} are no YAML in UTF-8: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
        raise ConfigError(f"the judge's settings {path} hold no `name: value` lines")
    try:
        config = from_mapping(JudgeConfig, read, texts=True)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.judge is None:
        raise ConfigError(f"the judge's settings {path} name no judge: add the line judge: …")
    return config


def judge_spec_problems(entry: str) -> list[str]:
    """What is wrong with `judge:…` in a setting; nothing is loaded."""
    try:
        config = read_judge_spec(entry).config
    except ConfigError as error:
        return [str(error)]
    file = re.match(r"(.*\.py):\w+$", config.judge or "")
    return [f"{entry}: there is no file {file[1]}"] if file and not Path(file[1]).expanduser().is_file() else []
