"""The page on what was run where says what the tests are."""

import pytest

from tests.what_ran import DEFAULT, PAGE, ROOT, RUNS, has_mark, is_there, page


def test_the_page_is_made_of_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.what_ran --write"


@pytest.mark.parametrize("test", sorted({run.test for run in RUNS}))
def test_every_line_names_a_test_and_the_lane_that_runs_it(test):
    assert is_there(test)
    lanes = {run.lane for run in RUNS if run.test == test}
    assert {lane != DEFAULT for lane in lanes} == {has_mark(test, "slow")}


def test_every_command_is_one_of_the_makefile():
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for lane in {run.lane for run in RUNS}:
        assert f"\n{lane.removeprefix('make ')}:" in targets, lane


def test_what_needs_an_environment_of_its_own_is_skipped_without_it():
    for run in RUNS:
        assert has_mark(run.test, "skipif") or run.lane not in ("make deepspeed", "make engines"), run.test


def test_a_line_that_names_no_test_is_noticed():
    assert not is_there("tests/scale/test_sharded.py::test_of_nothing")
    assert not has_mark("tests/scale/test_degrees.py::test_copies_and_pieces", "slow")
