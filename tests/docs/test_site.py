"""The site: pages made from the code are current, every page is in the navigation, every link leads somewhere."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from website.pages import pages
from website.tables import ALIGNTUNE, DECOUPLED, DIVERGENCE, MINDSPEED, PPOV2, ours
from website.versions import pins

import nearstep
from nearstep.cli.commands import COMMANDS
from nearstep.config.ppo import PPOConfig
from nearstep.reports.health.verdict import RULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
MADE = {name: make() for name, make in pages().items()}


@pytest.mark.parametrize("name", MADE)
def test_a_page_that_is_made_is_current(name):
    assert (ROOT / name).read_text(encoding="utf-8") == MADE[name], "python -m website"


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w./]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    notebooks = {f"notebooks/{file.stem}.md" for file in (DOCS / "notebooks").glob("*.ipynb")}
    outside = {f"repository/{page.name}" for page in OUTSIDE} - {"repository/README.md"} | {"repository/CHANGELOG.md"}
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES} | notebooks | outside


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them, and those that stand in it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", title).encode("ascii", "ignore").decode() for title in titles]
    made = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()) for title in plain}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
        if "://" in link:
            continue
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_nothing_is_loaded_from_elsewhere():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["strict"] is True
    assert settings["theme"]["font"] is False
    assert {"offline", "search"} <= {name for name in settings["plugins"] if isinstance(name, str)}
    assert not {"extra_javascript", "extra_css"} & settings.keys()
    for page in PAGES:
        assert not re.search(
            r"!\[[^]]*\]\(https?:|<(?:script|img|link)[^>]+https?:", page.read_text(encoding="utf-8")
        ), page


def test_names_of_the_tables_are_settings():
    for table in (PPOV2, DECOUPLED, DIVERGENCE, ALIGNTUNE, MINDSPEED):
        assert {ours(name) for name in table} <= set(PPOConfig.types)
    with pytest.raises(KeyError):
        ours("target_kl_of_someone")


def test_the_pages_have_all_that_there_is():
    for field in dataclasses.fields(PPOConfig):
        assert f"| `{field.name}` |" in MADE["docs/settings.md"]
        assert f"`{field.name}" in MADE["skills/nearstep/SKILL.md"]
    for command in COMMANDS:
        assert f"\n## {command.name}\n" in MADE["docs/commands.md"]
        assert f"`nearstep {command.name}" in MADE["skills/nearstep/SKILL.md"]
    for rule in RULES:
        assert f"health.md#{rule.name})" in MADE["docs/troubleshooting.md"]
    for page in PAGES:
        assert f"({page.relative_to(DOCS).as_posix()})" in MADE["docs/llms.txt"]


def test_every_public_name_is_on_the_page_of_python():
    text = MADE["docs/api.md"]
    for name in set(nearstep.__all__) - {"__version__"}:
        assert f".{name}\n" in text or f"`{name}`" in text, name


def test_the_lowest_versions_are_those_that_are_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["peft"],
        *project["optional-dependencies"]["reward"],
    ]
    lowest, newest = pins(ROOT / "constraints-floor.txt"), pins(ROOT / "constraints.txt")
    for each in asked:
        found = re.match(r"([\w.-]+)>=([\d.]+)", each)
        if found:
            assert (lowest[found[1]] + ".").startswith(found[2] + "."), each
            assert found[1] in newest


def test_the_version_is_said_once_and_kept_elsewhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == nearstep.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(nearstep.__version__)})\]", changes, re.MULTILINE)
    assert "keepachangelog.com" in changes


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name)
def test_a_workflow_calls_targets_of_make(file):
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {target for line in lines for target in re.findall(r"\bmake ([a-z-]+)", line)}
    assert called
    assert called <= targets
