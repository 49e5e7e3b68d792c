"""What mkdocs asks while it builds: files outside docs/ that a page links to become pages of the site, notebooks too.

A link such as `../benchmarks/README.md` or `../../src/nearstep/training/loop.py` leads somewhere in the repository and
on a forge. On the site it leads to a page below `repository/` that shows the file, so that the site needs no network.
Standard library and mkdocs only.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACE = "repository"  # where files of the repository lie on the site
NAMED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # in the navigation
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?https?:[^>]*>|<link\b(?=[^>]*stylesheet|[^>]*icon|[^>]*preconnect)[^>]*https?:[^>]*>"
)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=[)\s])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/, and a page for every notebook."""
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        name = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=_notebook(notebook)))
    waiting = [
        *NAMED,
        *(path for file in files.documentation_pages() for path in _outside(file.content_string, file.src_uri)),
    ]
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if (ROOT / path).suffix in (".png", ".svg"):
            files.append(File.generated(config, _on_site(path), abs_src_path=str(ROOT / path)))
            continue
        text = _shown(path)
        files.append(File.generated(config, _on_site(path), content=text))
        waiting += _outside(text, _on_site(path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where their files lie on the site."""
    here = page.file.src_uri

    def led(match: "re.Match[str]") -> str:
        path = _in_repository(match[1], here)
        if path is None:
            return match[0]
        inside = path.removeprefix("docs/")
        target = inside if inside != path else _on_site(path)
        if inside.endswith(".ipynb"):
            target = inside.removesuffix(".ipynb") + ".md"
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + match[2]

    return LINK.sub(led, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Raise PluginError where a page would load something from elsewhere: it has to open without a network."""
    loaded = FETCHED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {loaded[0][:200]}")
    return output


def _in_repository(link: str, here: str) -> str | None:
    """The path, from the repository's root, of what a page links to; None for what is not a file of it."""
    if "://" in link or link.startswith(("mailto:", "#")):
        return None
    source = here.removeprefix(f"{PLACE}/") if here.startswith(f"{PLACE}/") else f"docs/{here}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if path.startswith("..") or not (ROOT / path).exists():
        return None
    return _first_page(path) if (ROOT / path).is_dir() else path


def _first_page(folder: str) -> str:
    """The page that a folder opens with; the folder itself, which is listed, where it has none."""
    named = ROOT / folder / "README.md"
    pages = [named] if named.is_file() else sorted((ROOT / folder).glob("*.ipynb"))
    return f"{folder}/{pages[0].name}" if pages else folder


def _outside(text: str, here: str) -> Iterator[str]:
    """What a page links to outside docs/."""
    for link, _ in LINK.findall(text):
        path = _in_repository(link, here)
        if path is not None and path != "docs" and not path.startswith("docs/"):
            yield path


def _on_site(path: str) -> str:
    """Where a file or folder of the repository lies on the site."""
    if (ROOT / path).is_dir():
        return f"{PLACE}/{path}/index.md"
    whole = Path(path).suffix in (".png", ".svg")
    return f"{PLACE}/{path}" if whole or path.endswith(".md") else f"{PLACE}/{path}.md"


def _shown(path: str) -> str:
    """A page that shows a file as it is, or lists a folder."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(each.name for each in place.iterdir() if each.suffix in (".md", *LANGUAGES))
        return "\n".join([f"# {path}", "", *(f"- [{name}]({name})" for name in names), ""])
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return text
    fence = "`" * max(4, *(len(run) + 1 for run in re.findall(r"`{3,}", text)), 0)
    return f"# {path}\n\n{fence}{LANGUAGES.get(place.suffix, 'text')}\n{text}\n{fence}\n"


def _notebook(file: Path) -> str:
    """The cells of a notebook as a page; it can be downloaded from there."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join([*parts, f'<a href="{file.name}" download>{file.name}</a>, to open in Jupyter']) + "\n"
