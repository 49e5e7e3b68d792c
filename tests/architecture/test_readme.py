"""The README's map of the rooms is the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "nearstep"
ROOMS_IN_ROOMS = (
    "models/forward",
    "models/attention",
    "rollout/ahead",
    "rollout/vllm",
    "rewards/workers",
    "rewards/remote",
    "rewards/sandbox",
    "rewards/builtin",
)


def mapped() -> list[str]:
    """Paths below `src/nearstep` that the map names, in its order."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```\nsrc/nearstep/\n")[1].split("```")[0]
    found, room = [], ""
    for indent, name in re.findall(r"^( {2}| {4})([a-z_]+(?:\.py|/))", block, re.MULTILINE):
        room = name if len(indent) == 2 else room
        found.append(name if len(indent) == 2 else room + name)
    return found


def test_the_map_names_every_room_and_every_module_beside_them():
    there = {file.name for file in SOURCE.glob("*.py")} - {"__main__.py"}
    there |= {f"{folder.name}/" for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()}
    there |= {f"{room}/" for room in ROOMS_IN_ROOMS}
    assert sorted(mapped()) == sorted(there)


def test_four_modules_lie_beside_the_rooms():
    assert {file.name for file in SOURCE.glob("*.py")} == {
        "__init__.py", "__main__.py", "trainer.py", "types.py", "metrics.py",
    }  # fmt: skip
