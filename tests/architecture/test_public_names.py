"""Every public name can be imported, and only those are there."""

import ast
import importlib
from pathlib import Path

import pytest

import nearstep

LAZY = sorted(set(nearstep.__all__) - {"__version__"})


@pytest.mark.parametrize("name", LAZY)
def test_public_name(name):
    module = importlib.import_module(nearstep._HOMES[name])
    assert getattr(nearstep, name) is getattr(module, name)


def test_the_three_lists_of_public_names_agree():
    tree = ast.parse(Path(nearstep.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    for_type_checkers = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert for_type_checkers == nearstep._HOMES
    assert sorted(nearstep._HOMES) == LAZY


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nearstep' has no attribute 'PPOTrainr'"):
        nearstep.PPOTrainr  # noqa: B018


def test_dir_lists_the_public_names():
    assert set(nearstep.__all__) <= set(dir(nearstep))
