"""Every code block of the pages: our parser reads its commands, Python can read it, and what it imports is there.

The pages of a newcomer are run as they stand, with tiny models where they name large ones: `test_pages_run.py`.
"""

import ast
import importlib
import json
import re

import pytest
import yaml

from nearstep.cli.command import Command
from nearstep.cli.commands import COMMANDS
from nearstep.cli.flags import read_flags
from nearstep.config.conversion import UnfitError, as_type
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import current_name
from tests.docs.blocks import BLOCKS

BY_NAME = {command.name: command for command in COMMANDS}
ELSEWHERE = ("--help", "--version", "-h")
NOT_OURS = {"nproc"}  # of the launcher


def of(language):
    return [block for block in BLOCKS if block.language == language]


def problems(command: Command, words: list[str]) -> list[str]:
    """What the parser of a command says against words of a page; values that stand for something in capitals pass."""
    if command.operand is not None and words and not words[0].startswith("--"):
        words = [f"--{command.operand}", *words]
    settings = command.settings
    flags = read_flags(settings, [word for word in words if word not in ("…", "...")])
    found = [problem.text for problem in flags.problems if "…" not in words]
    for name, value in flags.values.items():
        setting = current_name(name, settings.old_names)
        if setting.removeprefix("no_") in NOT_OURS:
            continue
        kind = settings.types.get(setting)
        if kind is None:
            found.append(f"unknown setting {name}")
            continue
        try:
            as_type(
                settings.old_names.values.get(setting, {}).get(value, value) if isinstance(value, str) else value,
                kind,
                texts=True,
            )
        except UnfitError as unfit:
            if not str(value).isupper():
                found.append(f"{name} = {value} must be {unfit}")
    if flags.recipe is not None and flags.recipe not in command.recipes and not flags.recipe.isupper():
        found.append(f"unknown recipe {flags.recipe}")
    return found


def test_there_are_blocks():
    assert len([1 for block in of("bash") for _ in block.commands()]) > 80
    assert len(of("python")) > 50


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_commands_are_read(block):
    for words in block.commands():
        name, *rest = words
        if name in ELSEWHERE or {"--help"} & set(rest):
            continue
        if name.isupper() or name == "…":
            continue  # nearstep COMMAND --help
        if name == "fork":
            rest = rest[1:]  # the checkpoint of a run
        assert name in BY_NAME, words
        assert problems(BY_NAME[name], rest) == [], words


def test_a_wrong_command_is_noticed():
    assert problems(BY_NAME["ppo"], ["--temprature", "1"]) == ["unknown setting temprature"]
    assert problems(BY_NAME["ppo"], ["--kl_estimator", "k9"])
    assert problems(BY_NAME["ppo"], ["--recipe", "dppo"]) == ["unknown recipe dppo"]
    assert problems(BY_NAME["ppo"], ["--num_ppo_epochs", "two"])


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_read_and_its_imports_are_there(block):
    tree = ast.parse(re.sub(r",\s*(?:…|\.\.\.)(?=\s*\))", "", block.text).replace("…", "..."))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "nearstep":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert getattr(module, alias.name, None) is not None, f"{node.module} has no {alias.name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "migrations" not in block.page:
            known = (
                PPOConfig.types if re.fullmatch(r"(Decoupled|Divergence|TRLParity)?PPOConfig", node.func.id) else None
            )
            named = {keyword.arg for keyword in node.keywords} - {None}
            assert known is None or {current_name(name, PPOConfig.old_names) for name in named} <= set(known)


@pytest.mark.parametrize("block", [*of("yaml"), *of("json")], ids=str)
def test_data_can_be_read(block):
    text = re.sub(r"[…]|\.\.\.", "null", block.text)
    if block.language == "yaml":
        yaml.safe_load(text)
    elif block.file is not None:
        assert all(json.loads(line) for line in text.splitlines())


def test_the_quick_start_has_at_most_twelve_lines():
    (block,) = [block for block in BLOCKS if block.page == "docs/index.md" and block.language == "python"]
    assert len(block.text.splitlines()) <= 12
