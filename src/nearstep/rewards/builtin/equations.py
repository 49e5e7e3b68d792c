"""Which number a text gives as its answer, and which of its equations hold."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})(?:\.\d{1,40})?|\.\d{1,40}"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-−])?[$€£]?(?P<over>{_DIGITS})(?:[eE](?P<power>[-+]?\d{{1,3}}))?"
    rf"(?:\s*/\s*(?P<under>{_DIGITS}))?(?!\d)"
)
_FRAC = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_MIXED = re.compile(r"(?<=\d)(?=\\[dt]?frac)")
_ANNOUNCED = re.compile(r"\\boxed\s*\{|####|\banswer(?:\s+is)?\s*:?", re.IGNORECASE)
_CHAIN = re.compile(r"(?:[-−+*×·/÷()\d \t$€£=]|,(?=\d{3})|\.(?=\d))+")
_PYTHON = str.maketrans({"−": "-", "×": "*", "·": "*", "÷": "/", "$": None, "€": None, "£": None})
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, None if it has no number.

    The first one behind the last of \\boxed{, ####, “answer is” and “answer:”, else the last one of the text. Signs,
    currency marks, thousands separators, exponents and fractions are read; a percent sign is not.
    """
    plain = _FRAC.sub(r"\1\2/\3\4", _MIXED.sub(" ", text))
    announced = list(_ANNOUNCED.finditer(plain))
    behind = _NUMBER.search(plain, announced[-1].end()) if announced else None
    if behind is not None:
        return _fraction(behind)
    numbers = list(_NUMBER.finditer(plain))
    return _fraction(numbers[-1]) if numbers else None


def equations(text: str) -> dict[str, bool]:
    """The equations between numbers in a text, each once, and whether they hold.

    One side at least must be a sum, difference, product or quotient. A side may be rounded to its own decimals.
    """
    found: dict[str, bool] = {}
    for chain in _CHAIN.finditer(text):
        sides = [(side, _value(side)) for side in _sides(chain)]
        for (left, a), (right, b) in pairwise(sides):
            if a is not None and b is not None and not (_is_number(left) and _is_number(right)):
                found["".join(f"{left}={right}".split())] = abs(a - b) <= max(_rounding(left), _rounding(right))
    return found


def _fraction(match: re.Match[str]) -> Fraction | None:
    over, under = _plain(match["over"]), _plain(match["under"] or "1")
    if under == 0:
        return None
    value = over / under * Fraction(10) ** int(match["power"] or 0)
    return -value if match["sign"] else value


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _sides(chain: re.Match[str]) -> list[str]:
    """The sides of a chain of equations; empty where a side goes on beyond the chain."""
    sides = [_as_python(side) for side in chain.group().split("=")]
    text, start, end = chain.string, chain.start(), chain.end()
    before, behind = text[max(0, start - 1) : start], text[end : end + 1]
    if sides[0][:1] in ("+", "-", "*", "/"):
        goes_on = before.isalnum() or before in ("%", ")", "]", "}")
    else:
        goes_on = not chain.group()[0].isspace() and (before.isalnum() or before in ("^", "\\", "}", "]", "_"))
    if goes_on and before:
        sides[0] = ""
    if behind and not chain.group()[-1].isspace() and (behind.isalnum() or behind in "^!\\{%_"):
        sides[-1] = ""
    return sides


def _as_python(side: str) -> str:
    return side.translate(_PYTHON).replace(",", "").strip()


def _value(side: str) -> Fraction | None:
    """What an expression of numbers, + - * / and brackets is worth; None if it is none."""
    if not side:
        return None
    try:
        return _evaluate(ast.parse(side, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(repr(node.value))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand)
        case ast.BinOp() if type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("no arithmetic")


def _is_number(side: str) -> bool:
    return re.fullmatch(r"-?[\d.]+", side) is not None


def _rounding(side: str) -> Fraction:
    """Half a unit of the last decimal of a plain number; an expression is exact."""
    if not _is_number(side):
        return Fraction(0)
    decimals = len(side.partition(".")[2])
    return Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
