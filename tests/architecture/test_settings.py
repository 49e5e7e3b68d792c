"""Every setting does something: it is read somewhere outside the file that declares it."""

import ast
import dataclasses
from pathlib import Path

import pytest

from nearstep.config import PPOConfig

DECLARED = ("config.py", "config_data.py", "config_rewards.py", "config_shared.py")
SOURCE = Path(__file__).parents[2] / "src" / "nearstep"


@pytest.fixture(scope="module")
def attributes_read():
    files = [
        file
        for file in SOURCE.rglob("*.py")
        if file.name not in ("config.py", "config_data.py", "config_rewards.py", "config_shared.py")
        and file.parent.name != "cli"
    ]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(PPOConfig)])
def test_setting_is_read(name, attributes_read):
    assert name in attributes_read
