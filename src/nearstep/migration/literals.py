"""What an expression of a script is worth without running it: literals, names that hold one, and plain arithmetic."""

import ast
from collections.abc import Mapping

UNKNOWN = object()
OF_TORCH = ("float32", "bfloat16", "float16", "float64")  # torch.NAME is the type of that name


def literal(node: ast.expr, known: Mapping[str, object]) -> object:
    """The value of an expression; UNKNOWN for anything that only runs.

    `known` has names with what they hold; `owner.attribute` stands for attributes, such as flags of a parser.
    """
    match node:
        case ast.Name(id=name):
            return known.get(name, UNKNOWN)
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in OF_TORCH:
            return name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return known.get(f"{owner}.{name}", UNKNOWN)
        case ast.Subscript(value=ast.expr() as owned, slice=ast.Constant(value=key)):
            held = literal(owned, known)
            return held.get(key, UNKNOWN) if isinstance(held, dict) else UNKNOWN
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            found = [literal(entry, known) for entry in entries]
            return UNKNOWN if UNKNOWN in found else found
        case ast.Dict(keys=keys, values=values):
            pairs = [(None if key is None else literal(key, known), literal(each, known))
                     for key, each in zip(keys, values, strict=True)]  # fmt: skip
            return _mapping(pairs)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            return _mapping([(word.arg, literal(word.value, known)) for word in words])
        case ast.JoinedStr(values=parts):
            return _joined([_part(part, known) for part in parts])
        case ast.BinOp(left=first, right=second, op=op):
            return _arithmetic(literal(first, known), literal(second, known), op)
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return value


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _mapping(pairs: list[tuple[object, object]]) -> object:
    """A dict of which every key is a text; `**other` within is not known."""
    if any(not isinstance(key, str) or value is UNKNOWN for key, value in pairs):
        return UNKNOWN
    return dict(pairs)


def _part(part: ast.expr, known: Mapping[str, object]) -> object:
    """A piece of an f-string; one with a format of its own is not known."""
    if isinstance(part, ast.FormattedValue):
        return literal(part.value, known) if part.conversion == -1 and part.format_spec is None else UNKNOWN
    return literal(part, known)


def _joined(parts: list[object]) -> object:
    if any(part is UNKNOWN or isinstance(part, list | dict) for part in parts):
        return UNKNOWN
    return "".join(map(str, parts))


def _arithmetic(left: object, right: object, op: ast.operator) -> object:
    if isinstance(left, str) and isinstance(right, str) and isinstance(op, ast.Add):
        return left + right
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return UNKNOWN
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div() if right:
            return left / right
        case ast.FloorDiv() if right:
            return left // right
        case ast.Pow() if abs(right) <= 64:
            return left**right
    return UNKNOWN
