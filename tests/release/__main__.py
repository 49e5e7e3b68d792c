"""Whether what would be published works where nothing else is: build, look at the files, install, train.

    python -m tests.release [floor] [newest]        # both unless named; what is built lies in dist/

Each environment is made anew, outside the sources. `floor` has the versions of constraints-floor.txt, `newest` those
of constraints.txt. It takes minutes and a package registry.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = {"floor": "constraints-floor.txt", "newest": "constraints.txt"}
IN_WHEEL = ("nearstep/py.typed", "nearstep/config/old_names.toml", "nearstep/demo/world.toml", "licenses/LICENSE")
IN_SOURCE = ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "src/nearstep/__init__.py", "tests/tiny.py")


def main(words: Sequence[str] | None = None) -> None:
    """Build and try; ends with an exit code of 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="floor|newest")
    named = parser.parse_args(words).versions or list(CONSTRAINTS)
    if unknown := set(named) - CONSTRAINTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(CONSTRAINTS)}")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run([sys.executable, "-m", "build"], ROOT)
    (wheel,), (source,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    look_at(wheel, source)
    for versions in named:
        with tempfile.TemporaryDirectory() as place:
            try_wheel(wheel, ROOT / CONSTRAINTS[versions], Path(place))
        print(f"release: {wheel.name} works with the versions of {CONSTRAINTS[versions]}")


def version() -> str:
    """The one place that says it."""
    text = (ROOT / "src" / "nearstep" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


def look_at(wheel: Path, source: Path) -> None:
    """Raise SystemExit where files are missing, or tests and benchmarks have come along."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    with tarfile.open(source) as packed:
        inside = ["/".join(Path(name).parts[1:]) for name in packed.getnames()]
    missing = [end for end in IN_WHEEL if not any(name.endswith(end) for name in names)]
    missing += [name for name in IN_SOURCE if name not in inside]
    strange = {name.split("/")[0] for name in names} - {"nearstep", f"nearstep-{version()}.dist-info"}
    if missing or strange or version() not in wheel.name:
        raise SystemExit(f"release: missing {missing}, strange {sorted(strange)}, in {wheel.name} and {source.name}")


def try_wheel(wheel: Path, constraints: Path, place: Path) -> None:
    """Install it alone, ask for its version, train in the small world, and look at the run, all outside the sources."""
    run([sys.executable, "-m", "venv", str(place / "env")], place)
    python, nearstep = str(place / "env" / "bin" / "python"), str(place / "env" / "bin" / "nearstep")
    run([python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), f"{wheel}[reward,peft]"], place)
    said = run([nearstep, "--version"], place).strip()
    if said != f"nearstep {version()}":
        raise SystemExit(f"release: nearstep --version says {said}")
    run([nearstep, "demo", "--quick", "--output", "demo"], place)
    run([nearstep, "doctor", "demo/ppo"], place, allowed=(0, 3))
    run(["bash", "-n", "-c", run([nearstep, "completion", "bash"], place)], place)


def run(command: Sequence[str], place: Path, allowed: Sequence[int] = (0,)) -> str:
    """What a command printed. Raises SystemExit, with all that it printed, where it failed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"release: {' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
