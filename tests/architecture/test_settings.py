"""Every setting does something: it is read somewhere outside the file that declares it."""

import ast
import dataclasses
from pathlib import Path

import pytest

from nearstep.config.ppo import PPOConfig
from nearstep.config.reward_model import RewardConfig

DECLARING = (
    "config.py", "config_data.py", "config_reward_modeling.py", "config_rewards.py", "config_sections.py",
    "config_shared.py",
)  # fmt: skip
SOURCE = Path(__file__).parents[2] / "src" / "nearstep"


@pytest.fixture(scope="module")
def attributes_read():
    files = [file for file in SOURCE.rglob("*.py") if file.name not in DECLARING and file.parent.name != "cli"]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(
    "name", sorted({field.name for config in (PPOConfig, RewardConfig) for field in dataclasses.fields(config)})
)
def test_setting_is_read(name, attributes_read):
    assert name in attributes_read
