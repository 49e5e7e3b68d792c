"""How a shell script is read without running it: its commands as words, with the variables that it sets put in."""

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise

_ASSIGNMENT = re.compile(r"(?:export\s+|readonly\s+|local\s+|declare\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?:\[@\]|\[\*\])?(?::?-([^{}]*))?\}|\$([A-Za-z_]\w*)")
OPERATORS = ("|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1", "2>", "&>", ">&")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, up to a pipe or a redirection. What is not set in the script stays as `$NAME`."""
    known: dict[str, str] = {}
    for line in logical_lines(text):
        assigned = _ASSIGNMENT.fullmatch(line.strip())
        if assigned and not _has_command(assigned[2]):
            known[assigned[1]] = _value(assigned[2], known)
            continue
        words = _words(_with_variables(line, known))
        for piece in _pieces(words):
            if piece:
                yield piece
            for before, word in pairwise(piece):
                if before.startswith("-") and before.endswith("c") and " " in word:  # bash -c "…"
                    yield from commands(word)


def logical_lines(text: str) -> Iterator[str]:
    """Lines with their continuations: behind a backslash, within quotes, within the parentheses of an array."""
    line, quote, depth, place = "", "", 0, 0
    while place < len(text):
        sign = text[place]
        if sign == "\\" and quote != "'":
            following = text[place + 1 : place + 2]
            line += " " if following == "\n" else sign + following
            place += 2
            continue
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (not line or line[-1].isspace()):
            while place < len(text) and text[place] != "\n":
                place += 1
            continue
        elif sign in "()":
            depth = max(0, depth + (1 if sign == "(" else -1))
        elif sign == "\n" and depth == 0:
            if line.strip():
                yield line
            line, place = "", place + 1
            continue
        line += " " if sign == "\n" else sign
        place += 1
    if line.strip():
        yield line


def _has_command(value: str) -> bool:
    """Whether a word follows the value, so that the assignment belongs to a command: A=1 python x.py."""
    return not value.lstrip().startswith("(") and len(_words(value)) > 1


def _value(text: str, known: Mapping[str, str]) -> str:
    """What a variable holds: an array as its words, side by side."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return _with_variables(text[1:-1].strip(), known)
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    expanded = _with_variables(text, known)
    return expanded[1:-1] if len(expanded) > 1 and expanded[0] == expanded[-1] == '"' else expanded


def _with_variables(text: str, known: Mapping[str, str]) -> str:
    def value(found: "re.Match[str]") -> str:
        name, default = found[1] or found[3], found[2]
        return known.get(name, default if default is not None else found[0])

    return _VARIABLE.sub(value, re.sub(r'"(\$\{\w+\[@\]\})"', r"\1", text))  # the words of an array stay words


def _words(line: str) -> list[str]:
    """The words; of a line whose quotes do not close, those that blanks part."""
    try:
        return shlex.split(line, comments=False)
    except ValueError:
        return line.split()


def _pieces(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line."""
    piece: list[str] = []
    for word in words:
        if word in OPERATORS or re.fullmatch(r"\d?>{1,2}&?.*|&>.*", word):
            yield piece
            piece = []
        else:
            piece.append(word.rstrip(";") if word.endswith(";") else word)
    yield piece
