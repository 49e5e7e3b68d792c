"""How a shell script is read without running it: its commands as words, with the variables that it sets put in."""

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

_ASSIGNMENT = re.compile(
    r"(?:(?:export|readonly|local|declare|typeset)\s+(?:-\w+\s+)*)?([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL
)
_ONE_OF_SEVERAL = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_WITHIN = re.compile(r"(?:then|else|do|\{)\s+")  # what stands before a command of an if or a loop
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*|\d)(?:\[@\]|\[\*\])?(?::?-([^{}]*))?\}|\$([A-Za-z_]\w*)")
_ARITHMETIC = re.compile(r"\$\(\(((?:[^()]|\([^()]*\))*)\)\)")
_COMMENT_WITHIN = re.compile(r"`#[^`]*`")  # the way to write a comment between the lines of one command
_BRANCH = re.compile(r"\s*(?:if|elif|case|for|while)\s")
OPERATORS = ("|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1", "2>", "&>", ">&")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, up to a pipe or a redirection. What is not set in the script stays as `$NAME`.

    Every branch of an `if` is read, in order.
    """
    known: dict[str, str] = {}
    for line in logical_lines(_COMMENT_WITHIN.sub("", text)):
        if _assigns(_WITHIN.sub("", line.strip(), count=1), known):
            continue
        words = _words(_with_variables(line, known))
        for piece in _pieces(words):
            if piece:
                yield piece
            for before, word in pairwise(piece):
                if before.startswith("-") and before.endswith("c") and " " in word:  # bash -c "…"
                    yield from commands(word)


def doubts(text: str, found: Iterable[Sequence[str]]) -> Iterator[str]:
    """What may not be as the shell has it: branches, which are all read, and flags that stand outside a command."""
    tests = [line.split(";")[0].strip() for line in text.splitlines() if _BRANCH.match(line)]
    if tests:
        yield f"every branch was read, the later wins: {'; '.join(tests[:3])}"
    loose = [piece[0] for piece in found if piece[0].startswith("--")]
    if loose:
        yield (
            f"outside of every command: {', '.join(loose[:3])}. A comment or an empty line behind a backslash ends a "
            "command, for the shell too"
        )


def logical_lines(text: str) -> Iterator[str]:
    """Lines with their continuations: behind a backslash, within quotes, within the parentheses of an array.

    A semicolon ends a line too.
    """
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
        elif sign in "\n;" and depth == 0:
            if line.strip():
                yield line
            line, place = "", place + 1
            continue
        line += " " if sign == "\n" else sign
        place += 1
    if line.strip():
        yield line


def _assigns(line: str, known: dict[str, str]) -> bool:
    """Note what a line assigns; whether it does that alone. `A=1 python x.py` is a command."""
    found = _ASSIGNMENT.fullmatch(line)
    if found is None:
        return False
    name, more, value = found.groups()
    if value.lstrip().startswith("(") or len(_words(value)) <= 1:
        glue = " " if value.lstrip().startswith("(") else ""
        known[name] = (known.get(name, "") + glue if more else "") + _value(value, known)
        return True
    several = [_ONE_OF_SEVERAL.fullmatch(word) for word in _words(line[found.start(1) :])]
    if not all(several):
        return False
    for each in several:
        assert each is not None
        known[each[1]] = (known.get(each[1], "") if each[2] else "") + _with_variables(each[3], known)
    return True


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

    def number(found: "re.Match[str]") -> str:
        inner = re.sub(r"[A-Za-z_]\w*", lambda name: known.get(name[0], name[0]), found[1])
        result = _integer(inner)
        return found[0] if result is None else str(result)

    text = re.sub(r'"(\$\{\w+\[@\]\})"', r"\1", text)  # the words of an array stay words
    return _ARITHMETIC.sub(number, _VARIABLE.sub(value, text))


_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}  # fmt: skip


def _integer(text: str) -> int | None:
    """What $((…)) comes to; None where a variable in it is not known."""

    def worth(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if not isinstance(node, ast.BinOp):
            return None
        left, right = worth(node.left), worth(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Div | ast.Mod):  # of a shell: towards 0
            return None if right == 0 else int(left / right) if isinstance(node.op, ast.Div) else left % right
        operation = _OPERATIONS.get(type(node.op))
        return None if operation is None else operation(left, right)

    try:
        return worth(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _words(line: str) -> list[str]:
    """The words; $(…) stays within one. Of a line whose quotes do not close, those that blanks part."""
    kept = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", lambda found: found[0].replace(" ", "\0"), line)
    try:
        return [word.replace("\0", " ") for word in shlex.split(kept, comments=False)]
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
