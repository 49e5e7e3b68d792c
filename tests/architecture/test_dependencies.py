"""What must be installed: few packages for everybody, the others by the extra of the feature that needs them."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from nearstep.common.errors import ConfigError, RewardError
from nearstep.config.rewards import RewardSettings
from nearstep.demo.run import run_demo
from nearstep.reward_modeling.fit import require_trainer
from nearstep.rewards.build import _remote
from nearstep.rewards.builtin import Regex
from nearstep.rewards.identity import TokenizerIdentity

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Came with another package that is listed, and are what that package is made of.
BROUGHT = {"pyarrow": "datasets", "tokenizers": "transformers", "huggingface_hub": "transformers",
           "safetensors": "transformers", "llvmlite": "numba", "referencing": "jsonschema",
           "pandas": "datasets"}  # fmt: skip
LOOKED_FOR = {"flash_attn", "vllm"}  # used where it is; vLLM has distributions of several names, and is in none of ours
NOT_HERE = {"deepspeed", "bitsandbytes", "unsloth"}  # of environments of their own, each under its own name


def named(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def imported():
    nodes = [node for file in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"nearstep"} - LOOKED_FOR


def distributions(modules):
    known = importlib.metadata.packages_distributions()
    here = modules - NOT_HERE
    return {known[BROUGHT.get(module, module)][0].lower().replace("_", "-") for module in here} | (modules & NOT_HERE)


def test_the_core_is_small_and_each_of_it_is_imported():
    core = named(PROJECT["dependencies"])
    assert len(core) <= 8
    assert core <= distributions(imported())


def test_everything_imported_is_in_the_core_or_in_an_extra():
    extras = named(
        entry for name, extra in PROJECT["optional-dependencies"].items() if name != "dev" for entry in extra
    )
    assert distributions(imported()) <= named(PROJECT["dependencies"]) | extras


@pytest.mark.parametrize(
    ("package", "extra", "use", "error"),
    [
        ("accelerate", "reward", require_trainer, ConfigError),
        ("accelerate", "reward", lambda: run_demo(output=Path("nowhere"), seed=0, quick=True), ConfigError),
        ("httpx2", "remote",
         lambda: _remote(RewardSettings(), "http://localhost:1/score", TokenizerIdentity("", None), 0), ConfigError),
        ("regex", "metrics", lambda: Regex(pattern="a"), RewardError),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra_before_anything_is_done(package, extra, use, error, monkeypatch):
    assert any(entry.startswith(package) for entry in PROJECT["optional-dependencies"][extra])
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"needs the package {package}, which is not installed: pip install 'nearstep\[{extra}\]'\.$"
    with pytest.raises(error, match=said):
        use()
