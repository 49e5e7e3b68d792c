"""Which small changes of a file are bugs that a test could notice, and a seeded sample of them.

cosmic-ray finds and makes the changes (1 for 0, + for −, < for ≤, `or` for `and`). What cannot be noticed is left out:
types, errors, assertions and warnings, decorators, protocols, and checks by `strict`.
"""

import ast
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Changes that a slip could make. The rest of cosmic-ray's (× becomes <<) raise at once and would flatter the tests.
SLIPS = frozenset(
    f"core/{name}"
    for name in (
        "AddNot", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
        "ReplaceContinueWithBreak", "ReplaceFalseWithTrue", "ReplaceTrueWithFalse", "ZeroIterationForLoop",
        "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert",
        *(f"ReplaceBinaryOperator_{pair}" for pair in (
            "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Mul_Add", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
            "BitAnd_BitOr", "BitOr_BitAnd",
        )),
        *(f"ReplaceComparisonOperator_{pair}" for pair in (
            "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt", "LtE_GtE", "GtE_LtE",
            "Is_IsNot", "IsNot_Is",
        )),
    )
)  # fmt: skip

# Changes, as a line before and after, that change nothing. A survivor goes here only with its reason.
SAME: frozenset[tuple[str, str]] = frozenset(
    {
        ("low=0.0 if low is None else low,", "low= -1.0 if low is None else low,"),  # of a ratio, which is positive
        # A tensor of one dimension: its first is its last.
        (
            "firsts = torch.full_like(numbers, len(lengths)).scatter_reduce(",
            "firsts = torch.full_like(numbers, len(lengths)).scatter_reduce( -1, numbers, torch.arange(len(lengths), "
            'device=items.device), "amin"',
        ),
        # Without a score there is nothing to divide.
        (
            "std = math.sqrt(self.squares / self.count) if self.count else 0.0",
            "std = math.sqrt(self.squares / self.count) if self.count else 1.0",
        ),
        # Every optimizer has one group of weights.
        ('return float(self.optimizer.param_groups[0]["lr"])', 'return float(self.optimizer.param_groups[ -1]["lr"])'),
        # Where nothing moved the divergence is 0, and no threshold lies below that.
        (
            "falling = (advantages <= 0) & (now < old) & (divergence > low)",
            "falling = (advantages <= 0) & (now <= old) & (divergence > low)",
        ),
        ("if terms.entropy_coef != 0:", "if terms.entropy_coef != -1:"),  # it is at least 0; 0 · entropy adds nothing
    }
)

Place = tuple[int, int]  # line from 1, column from 0
Stretch = tuple[Place, Place]


@dataclass(frozen=True)
class Mutant:
    """One change: `text` is the whole file after it."""

    file: Path
    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.before}\n  + {self.after}"


@dataclass(frozen=True)
class Change:
    """Where an operator of cosmic-ray could change a file."""

    file: Path
    operator: str
    occurrence: int
    start: Place
    end: Place


def silent(source: str) -> list[Stretch]:
    """Stretches of a source in which no change can be noticed."""
    return [_stretch(node) for node in _silent_nodes(ast.parse(source))]


def _silent_nodes(tree: ast.AST) -> Iterator[ast.stmt | ast.expr | ast.keyword]:
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign():
                yield node.annotation
                if ast.unparse(node.annotation) == "TypeAlias" and node.value is not None:
                    yield node.value
            case ast.arg(annotation=ast.expr() as annotation):
                yield annotation
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from node.decorator_list
                if node.returns is not None:
                    yield node.returns
            case ast.ClassDef():
                yield from node.decorator_list
                if any(ast.unparse(base).startswith("Protocol") for base in node.bases):
                    yield node
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Raise() | ast.Assert() | ast.JoinedStr():
                yield node
            case ast.ExceptHandler(body=[*words, ast.Raise()]):  # what is counted for the text of an error
                yield from words
            case ast.Call(func=ast.Attribute(attr="warn")):
                yield node
            case ast.keyword(arg="strict"):
                yield node
            case _:
                pass


def _stretch(node: ast.stmt | ast.expr | ast.keyword) -> Stretch:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def changes(file: Path, source: str) -> list[Change]:
    """Every slip in a file that a test could notice."""
    stretches, between = silent(source), _between_operands(source)
    return [
        change
        for change in _every_change(file, source)
        if not _within(change, stretches) and ("Binary" not in change.operator or _within(change, between))
    ]


def _within(change: Change, stretches: Iterable[Stretch]) -> bool:
    return any(start <= change.start and change.end <= end for start, end in stretches)


def _between_operands(source: str) -> list[Stretch]:
    """Where a binary operator stands; the star of a signature or of a call is none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(left=left, right=right) | ast.AugAssign(target=left, value=right):
                found.append((_stretch(left)[1], _stretch(right)[0]))
            case _:
                pass
    return found


def _every_change(file: Path, source: str) -> Iterator[Change]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(SLIPS):
        operator = get_operator(name)()
        positions = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            yield Change(file, name, occurrence, start, end)


def mutant_of(change: Change, source: str) -> Mutant | None:
    """The file after a change; None where it is no Python any more, the same Python, or known to change nothing."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = mutate_code(source, get_operator(change.operator)(), change.occurrence)
    if text is None:
        return None
    try:
        if ast.dump(ast.parse(text)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    pairs = zip(source.splitlines(), text.splitlines(), strict=False)
    line, (before, after) = next((number, pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
    if (before.strip(), after.strip()) in SAME:
        return None
    return Mutant(change.file, line, before.strip(), after.strip(), text)


def sample(root: Path, folders: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants of the files below some folders, no two of them at one place; the same again for a seed."""
    sources = {
        file: file.read_text(encoding="utf-8") for name in folders for file in sorted((root / name).rglob("*.py"))
    }
    by_place: dict[tuple[Path, Place], list[Change]] = {}
    for file, source in sources.items():
        for change in changes(file.relative_to(root), source):
            by_place.setdefault((change.file, change.start), []).append(change)
    draws = random.Random(seed)
    found: list[Mutant] = []
    for place in draws.sample(list(by_place), len(by_place)):
        mutant = mutant_of(draws.choice(by_place[place]), sources[root / place[0]])
        if mutant is not None:
            found.append(mutant)
        if len(found) == count:
            break
    return found
