"""How a script of TRL up to 0.11 is given our imports: its code stays."""

import ast
from collections.abc import Iterator

OURS = (
    "PPOConfig", "PPOTrainer", "AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead",
    "create_reference_model", "LengthSampler", "respond_to_batch",
)  # fmt: skip
# The same functions in transformers: module and name there.
OF_TRANSFORMERS = {
    "set_seed": ("transformers", "set_seed"),
    "is_xpu_available": ("transformers.utils", "is_torch_xpu_available"),
    "is_npu_available": ("transformers.utils", "is_torch_npu_available"),
}


def with_our_imports(text: str) -> str:
    """The script with imports from nearstep.classic, wherever they stand; what has none here keeps its import, told."""
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    for node in sorted(imports, key=lambda each: each.lineno, reverse=True):
        assert node.end_lineno is not None
        new = list(_imports(node, tree))
        if new:
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = ["".join(f"{indent}{line}\n" for line in new)]
    return "".join(lines)


def _imports(node: ast.ImportFrom | ast.Import, tree: ast.Module) -> Iterator[str]:
    """The lines in the place of one import; none if it stays."""
    if isinstance(node, ast.Import):
        yield from _of_the_module(node, tree)
        return
    if (node.module or "").split(".")[0] != "trl":
        return
    taken = [alias for alias in node.names if alias.name in OURS]
    if taken:
        yield f"from nearstep.classic import {', '.join(map(_alias, taken))}"
    for alias in (each for each in node.names if each.name in OF_TRANSFORMERS):
        module, name = OF_TRANSFORMERS[alias.name]
        yield f"from {module} import {name}{_as(alias.asname or alias.name, name)}"
    left = [alias for alias in node.names if alias.name not in (*OURS, *OF_TRANSFORMERS)]
    if left:
        yield f"from {node.module} import {', '.join(map(_alias, left))}  # not in nearstep"


def _of_the_module(node: ast.Import, tree: ast.Module) -> Iterator[str]:
    """`import trl`, where all that is used of it is ours; of anything else of trl it is said that it is not here."""
    if [alias.name for alias in node.names] != ["trl"]:
        if any(alias.name.split(".")[0] == "trl" for alias in node.names):
            yield f"{ast.unparse(node)}  # not in nearstep"
        return
    name = node.names[0].asname or "trl"
    used = {
        each.attr
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == name
    }
    if used <= {*OURS}:
        yield f"from nearstep import classic as {name}"
    else:
        yield f"{ast.unparse(node)}  # not in nearstep: {', '.join(sorted(used - {*OURS}))}"


def _as(wanted: str, name: str) -> str:
    return "" if wanted == name else f" as {wanted}"


def _alias(alias: ast.alias) -> str:
    return alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
