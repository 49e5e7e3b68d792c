"""Which known name a wrong one was meant to be, if any is near enough to say so."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs by a slip of the fingers, or by the order of words or letters; None where none does.

    >>> nearest("temprature", ["temperature", "top_p"]), nearest("load", ["lam"])
    ('temperature', None)
    """
    names = list(known)
    words, letters = sorted(name.split("_")), sorted(name)
    for each in names:
        if sorted(each.split("_")) == words or sorted(each) == letters:
            return each
    slips = 0 if len(name) < 4 else 1 + len(name) // 6
    found = min(names, key=lambda each: _edits(name, each), default=None)
    return found if found is not None and _edits(name, found) <= slips else None


def _edits(one: str, other: str) -> int:
    """Levenshtein's distance: letters to put in, take out or exchange."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        corner, row[0] = row[0], number
        for place, theirs in enumerate(other, start=1):
            corner, row[place] = row[place], min(corner + (letter != theirs), row[place] + 1, row[place - 1] + 1)
    return row[-1]
