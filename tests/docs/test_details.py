"""docs/details.md: every id that is cited is listed there once, and all code and tests that it names are there."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "nearstep"
PAGE = (ROOT / "docs" / "details.md").read_text(encoding="utf-8")
LISTED = re.findall(r'<a id="([^"]+)">', PAGE)

# D9 in prose, 10.4 after a paragraph sign; test_..._d9_r06 and test_..._10_4 in names of tests.
IN_PROSE = re.compile(r"\b([DR]\d{1,2})\b|§ ?(\d+\.\d+)")
TEST_NAME = re.compile(r"def (test_\w+)")
IN_NAME, NUMBERS_AT_END = re.compile(r"_([dr]\d{1,2})(?=_|$)"), re.compile(r"_(\d+)_(\d+)$")


def texts():
    """Every file of code, tests and pages, less this test and the page itself."""
    places = ["src", "tests", "docs", "examples", "recipes"]
    files = [path for place in places for path in (ROOT / place).rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    return [path for path in files if path.name not in ("details.md", "test_details.py")]


def cited(text: str, *, code: bool) -> set[str]:
    found = {(letter or number).lower() for letter, number in IN_PROSE.findall(text)}
    for name in TEST_NAME.findall(text) if code else ():
        found |= set(IN_NAME.findall(name))
        found |= {".".join(numbers) for numbers in NUMBERS_AT_END.findall(name)}
    return found


def test_what_a_citation_is():
    assert cited("# D9, §10.1 and R06; 3D1 is none, nor R", code=False) == {"d9", "10.1", "r06"}
    assert cited("def test_it_stays_d9_r06(x):\ndef test_golden_10_4():\ndef test_two_2_rows():", code=True) == {
        "d9", "r06", "10.4",
    }  # fmt: skip


def test_every_citation_is_listed():
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in texts()
        for name in cited(path.read_text(encoding="utf-8"), code=path.suffix == ".py") - set(LISTED)
    }
    assert not missing


def test_every_id_is_listed_once_and_details_are_numbered_through():
    assert len(LISTED) == len(set(LISTED))
    details = [int(name) for name in LISTED if name.isdigit()]
    assert details == list(range(1, len(details) + 1))


@cache
def defined(path: Path) -> set[str]:
    """Names of the functions and classes of a file, those in classes among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def there(path: Path, name: str) -> bool:
    return path.is_file() and (not name or name in defined(path))


def test_every_test_that_is_named_is_there():
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE))
    assert len(named) > 100
    assert not [f"{file} {name}" for file, name in named if not there(ROOT / file, name)]


def test_all_code_that_is_named_is_there():
    named = set(re.findall(r"`((?!tests/)[\w/]+\.py)`(?:\s`(\w+)`)?", PAGE))
    assert len(named) > 50
    assert not [f"{file} {name}" for file, name in named if not there(SOURCE / file, name)]


def test_every_entry_names_code_and_a_test():
    entries = re.split(r'(?=<a id="[^"]+"></a>\*\*)', PAGE.split("## Worked values")[0])[1:]
    assert len(entries) > 90
    for entry in entries:
        assert re.search(r"`[\w/]+\.py`", entry), entry
        assert "`tests/" in entry, entry
