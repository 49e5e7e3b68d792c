"""Of thirty planted bugs the tests notice all but one at most; in the fast lane, that each has its place."""

from pathlib import Path

import pytest

from tests.mutants.planted import BUGS, main


def test_every_bug_has_its_place_once():
    assert len({bug.name for bug in BUGS}) == len(BUGS) == 30
    for bug in BUGS:
        path, text = bug.planted(Path(__file__).parents[2])
        assert text != path.read_text()
        for test in bug.tests:
            assert not test.startswith("tests/") or (Path(__file__).parents[2] / test).is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_planted_bugs_are_noticed_r35(monkeypatch):
    monkeypatch.setattr("sys.argv", ["planted"])
    assert main() == 0
