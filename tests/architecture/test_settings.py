"""Every setting does something: it is read somewhere outside the file that declares it."""

import ast
import dataclasses
from pathlib import Path

from nearstep.config.evaluation import EvalConfig
from nearstep.config.generating import GenerateOptions
from nearstep.config.judges import JudgeOptions
from nearstep.config.ppo import PPOConfig
from nearstep.config.reward_model import RewardConfig

CONFIGS = (PPOConfig, RewardConfig, EvalConfig, GenerateOptions, JudgeOptions)
SOURCE = Path(__file__).parents[2] / "src" / "nearstep"


def test_every_setting_is_read_somewhere():
    files = [file for file in SOURCE.rglob("*.py") if file.parent.name not in ("config", "cli")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {"json", "do_sample"}  # by the command, and by a property of the settings themselves
    assert {field.name for config in CONFIGS for field in dataclasses.fields(config)} - read == set()
