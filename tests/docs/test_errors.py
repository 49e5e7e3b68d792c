"""The index of errors has every class, and the words of its examples stand in the source: they can be looked for."""

import re
from pathlib import Path

import pytest

from nearstep.common.errors import NearstepError
from nearstep.reports.error_index import INDEX, text

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(file.read_text() for file in sorted((ROOT / "src" / "nearstep").rglob("*.py"))
                   if file.name != "error_index.py")  # fmt: skip


def kinds(kind=NearstepError):
    return {each for sub in kind.__subclasses__() for each in (sub, *kinds(sub))}


def test_every_class_has_its_entry():
    assert {entry.kind for entry in INDEX} == {kind for kind in kinds() if kind.__module__.startswith("nearstep.")}
    declared = set(re.findall(r"^class (\w+)\([^)]*(?:NearstepError|TrainingError)\b", SOURCE, re.MULTILINE))
    assert declared == {entry.kind.__name__ for entry in INDEX}


@pytest.mark.parametrize("example", [each for entry in INDEX for each in entry.examples], ids=lambda each: each.words)
def test_the_words_of_an_example_stand_in_the_source(example):
    assert example.words in example.message
    assert len(example.words) >= 8
    assert example.words in SOURCE


def test_the_page_is_what_the_index_makes_it():
    assert (ROOT / "docs" / "errors.md").read_text() == text(), (
        "python -m nearstep.reports.error_index > docs/errors.md"
    )


def test_every_page_that_it_names_is_there():
    for page in re.findall(r"\]\(([\w/]+\.md)\)", text()):
        assert (ROOT / "docs" / page).is_file(), page
