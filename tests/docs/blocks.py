"""The code blocks of the pages: their language, the file that they name, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([
    *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md",
    ROOT / "skills" / "nearstep" / "SKILL.md", ROOT / "benchmarks" / "README.md",
])  # fmt: skip
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
STARTS = ("nearstep ", ".venv/bin/nearstep ", "python -m nearstep ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that its title or first line names, and its text."""

    page: str
    number: int
    language: str
    file: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"

    def commands(self) -> Iterator[list[str]]:
        """The words of every nearstep command behind its name, a line of the shell each; what is left out with …."""
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            line = line.strip()
            for script in ("decoupled", "divergence"):
                line = line.replace(f"python examples/scripts/ppo/{script}.py", f"nearstep ppo --recipe {script}")
            line = re.sub(r"^torchrun .*?-m nearstep", "nearstep", line)
            start = next((each for each in STARTS if line.startswith(each)), None)
            if start is not None:
                words = shlex.split(line.removeprefix(start), comments=True)
                end = next(
                    (at for at, word in enumerate(words) if word in (">", ">>", "|", "&&", "||", "&")), len(words)
                )
                yield words[:end]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found = []
    for number, (indent, language, rest, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
        text = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        title = re.search(r'title="([^"]+)"', rest) or re.match(r"# (\w+\.py)\n", text)
        found.append(Block(page.relative_to(ROOT).as_posix(), number, language, title and title[1], text))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
