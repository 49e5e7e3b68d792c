"""How migrated settings are printed: as a command of the shell, or as a file for --config."""

import re
import shlex
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import RECIPES
from nearstep.config.settings import from_mapping
from nearstep.migration.convert import Migrated


def as_command(migrated: Migrated, place: str) -> str:
    """A script of the shell: comments, then one command."""
    start = "nearstep ppo"
    if migrated.processes > 1:
        start = f"torchrun --nproc_per_node {migrated.processes} -m nearstep ppo"
    flags = [] if migrated.recipe is None else [f"--recipe {migrated.recipe}"]
    flags += [f"--{name} {_words(value)}" for name, value in migrated.settings.items()]
    return "\n".join([*_comments(migrated, place), " \\\n    ".join([start, *flags])]) + "\n"


def as_yaml(migrated: Migrated, place: str) -> str:
    """A settings file: nearstep ppo --config FILE."""
    settings: dict[str, Any] = {} if migrated.recipe is None else {"recipe": migrated.recipe}
    settings |= {name: _plain(value) for name, value in migrated.settings.items()}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)
    started = "" if migrated.processes == 1 else f"torchrun --nproc_per_node {migrated.processes} -m "
    return "\n".join([*_comments(migrated, place), f"# Start it: {started}nearstep ppo --config THIS_FILE", text])


def _comments(migrated: Migrated, place: str) -> Iterator[str]:
    """What the user should know, as lines of comments."""
    yield f"# From {place}, settings of {migrated.library}, by `nearstep migrate`."
    if migrated.defaults:
        names = ", ".join(name for name in migrated.settings if name in migrated.defaults)
        yield f"# Not in the file, but defaults of {migrated.library}: {names}."
    for sentence in migrated.told:
        yield f"# {_line(sentence)}"
    if migrated.lost:
        yield "# No counterpart:"
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, value, why in migrated.lost:
        by_reason[why].append(name if value is True else f"{name} = {_line(shorten(value, 60))}")
    for why, losses in by_reason.items():
        yield f"#   {', '.join(losses)}: {why}"
    if migrated.idle:
        yield f"# Left out, since nothing depends on it here: {', '.join(migrated.idle)}."
    problems = list(problems_of(migrated))
    if problems:
        yield "# To settle before it runs:"
        yield from (f"#   {_line(problem)}" for problem in problems)


def problems_of(migrated: Migrated) -> Iterator[str]:
    """What `nearstep ppo` would still refuse, or lacks. Places are not looked for."""
    settings = migrated.settings
    for name, how in migrated.unread.items():
        yield f"{name} is missing: the script computes it when it runs ({how})"
    if not (settings.keys() | migrated.unread.keys()) & {"model_name_or_path", "sft_model_path"}:
        yield "model_name_or_path is missing: the policy to train"
    if "dataset_name" not in settings.keys() | migrated.unread.keys():
        yield "dataset_name is missing: the prompts"
    if not settings.keys() & {"reward_model_path", "reward_funcs", "reward_url"}:
        yield "no reward: give reward_model_path, or reward_funcs (nearstep rewards lists them)"
    recipe: Mapping[str, object] = RECIPES.get(migrated.recipe or "", {})
    unset = {name: value for name, value in settings.items() if not _is_variable(value)}
    yield from (f"{name} = {value}: the file does not set this variable" for name, value in settings.items()
                if name not in unset)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from_mapping(PPOConfig, {**recipe, **unset}, texts=True)
        except ConfigError as error:
            yield from (line.removeprefix("  - ") for line in str(error).splitlines()[1:])


def _is_variable(value: object) -> bool:
    """Whether a value holds a variable that the file leaves open; what $(…) prints is known when the shell runs it."""
    return "$" in re.sub(r"\$(HOME|USER|PWD)\b|\$\{(HOME|USER|PWD)\}|\$\((?:[^()]|\([^()]*\))*\)", "", str(value))


def _words(value: object) -> str:
    """A value as words of the shell; a variable stays one."""
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if "$" in text and '"' not in text and "`" not in text else shlex.quote(text)


def _plain(value: object) -> object:
    """A value as YAML keeps it; numbers that came as words become numbers."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _line(text: str) -> str:
    return " ".join(text.split())
