"""What may be imported where, and what `import nearstep` leaves alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lanes import slow

SOURCE = Path(__file__).parents[2] / "src" / "nearstep"
# Imported only inside the function that needs them.
HEAVY = {
    "accelerate",
    "datasets",
    "deepspeed",
    "jsonschema",
    "math_verify",
    "matplotlib",
    "nltk",
    "peft",
    "pyarrow",
    "pyphen",
    "regex",
    "rouge_score",
    "sacrebleu",
    "sentence_transformers",
    "tensorboard",
    "trackio",
    "unsloth",
    "vllm",
    "wandb",
}


def imports(file: Path, *, top_level: bool) -> Iterator[str]:
    """Modules that a file imports, as dotted names; with `top_level`, only those that its own import brings."""
    tree = ast.parse(file.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`, beyond those it starts with."""
    report = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.splitlines()[-1].split()}


def test_importing_nearstep_loads_nothing_but_the_standard_library():
    assert loaded_after("import nearstep") - sys.stdlib_module_names == {"nearstep"}


def test_a_configuration_needs_the_standard_library_only():
    assert loaded_after("from nearstep import PPOConfig; PPOConfig(lr=1e-6)") - sys.stdlib_module_names == {"nearstep"}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["ppo", "--help"],
        slow(["demo", "--help"]),
        slow(["check", "--help"]),
        ["rewards"],
        slow(["--version"]),
        ["ppo", "--sead", "1"],
    ],
)
def test_help_and_refusals_need_the_standard_library_only(words):
    loaded = loaded_after(f"from nearstep.cli.main import main; main({words})")
    assert loaded - sys.stdlib_module_names == {"nearstep"}


def test_the_algorithm_needs_torch_only():
    for file in (SOURCE / "algorithm").glob("*.py"):
        packages = {name.split(".")[0] for name in imports(file, top_level=False)} - sys.stdlib_module_names
        assert packages <= {"torch", "jaxtyping", "nearstep"}, file
        ours = {name for name in imports(file, top_level=False) if name.startswith("nearstep")}
        assert all(name.startswith("nearstep.algorithm") for name in ours), file


def test_heavy_packages_are_imported_where_they_are_used():
    for file in SOURCE.rglob("*.py"):
        packages = {name.split(".")[0] for name in imports(file, top_level=True)}
        assert not packages & HEAVY, f"{file} imports {packages & HEAVY} as soon as it is imported"


def test_a_type_name_stands_in_one_module():
    homes: dict[str, set[Path]] = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                names = [ast.unparse(node.target)]
            for name in names:
                homes.setdefault(name.lstrip("_"), set()).add(file.relative_to(SOURCE))
    assert {name: sorted(map(str, files)) for name, files in homes.items() if len(files) > 1} == {}
