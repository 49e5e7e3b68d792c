"""Which of many like cases run by default: some that stand for the others, which run in the slow lane."""

import pytest


def sampled(cases, every: int) -> list:
    """The first case and every so many after it; the others are slow."""
    return [case if place % every == 0 else slow(case) for place, case in enumerate(cases)]


def slow(case):
    """A case of a parametrized test that runs in the slow lane only."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
