"""The compatibility page: lowest and newest versions, from pyproject.toml and the two files of constraints."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness.results import table

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "transformers", "datasets", "peft", "accelerate", "jaxtyping", "rich")
HEAD = """# Compatibility

| | |
| --- | --- |
| Python | 3.11 and newer; 3.11 is what was run here, 3.12 and 3.13 are in the workflow |
| system | Linux; the sandbox for a policy's code needs bubblewrap |
| devices | CPU. GPUs are made for, and `make gpu-check` tries one in ten minutes; nothing has been run on one yet |
| several processes | CPU processes on one machine: [what was run where](scaling.md#what-was-run-where) |

## Packages

"""
TAIL = """
*Lowest* is what `pyproject.toml` allows. `make floor` installs exactly these and runs the tests of the trainer, the engine, adapters,
reward models and checkpoints on them. *Newest* is what `constraints.txt` holds, with which every test runs. Between the two nothing is
tried; an error there is a defect. Only transformers has an upper bound: nobody has seen 6.

In environments of their own, since their packages hold others back:

| | |
| --- | --- |
| vLLM | `constraints-engines.txt`, `make engines`; [engines](engines.md) |
| unsloth | `constraints-unsloth.txt`, `make unsloth`; [unsloth](unsloth.md) |
| TRL 1.8.0, for comparisons | `make alignment` |

`nearstep doctor` compares what is installed with what is needed, and names what is missing with its extra.

## Extras

"""


def page() -> str:
    """The page docs/compatibility.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {_name(each): each for each in project["dependencies"]}
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    of_extras = {_name(each): each for each in extras["peft"] + extras["reward"]}
    lowest, newest = pins(ROOT / "constraints-floor.txt"), pins(ROOT / "constraints.txt")
    rows = [(name, f"`{(needed | of_extras)[name]}`", lowest[name], newest[name]) for name in SHOWN]
    others = [(f"`nearstep[{name}]`", ", ".join(f"`{each}`" for each in packages)) for name, packages in extras.items()]
    return HEAD + table(("package", "asked for", "lowest", "newest"), rows) + TAIL + table(("extra", "brings"), others)


def pins(file: Path) -> dict[str, str]:
    """Versions by name that a file of constraints holds."""
    found = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]
