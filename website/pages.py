"""Which files are made from the code, and by what: settings, commands, papers, symptoms, versions, what agents read."""

from collections.abc import Callable
from pathlib import Path

from website import agents, api, papers, settings, symptoms, tables, versions

ROOT = Path(__file__).parents[1]


def pages() -> dict[str, Callable[[], str]]:
    """How each is made, by its path from the repository's root. What agents read is last: it reads the other pages."""
    return {
        "docs/settings.md": settings.settings_page,
        "docs/commands.md": settings.commands_page,
        "docs/papers.md": papers.page,
        "docs/troubleshooting.md": symptoms.page,
        "docs/compatibility.md": versions.page,
        "docs/tables.md": tables.page,
        "docs/api.md": api.page,
        "docs/llms.txt": agents.index,
        "skills/nearstep/SKILL.md": agents.skill,
    }
