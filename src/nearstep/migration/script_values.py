"""What a script's own flags and classes of constants hold, and which adapters it puts on: read by syntax."""

import ast
from collections.abc import Collection, Iterator, Mapping

from nearstep.migration.literals import UNKNOWN, called, literal

PARSES = (
    "parse_args", "parse_known_args", "parse_args_into_dataclasses", "parse_args_and_config", "parse_dict",
    "parse_json_file", "parse_yaml_file", "cli",
)  # fmt: skip
# peft's LoraConfig: its name = ours, and its defaults, which are others here.
OF_ADAPTERS: Mapping[str, str] = {
    "r": "lora_r", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save", "use_dora": "use_dora", "use_rslora": "use_rslora",
    "lora_dropout": "lora_dropout",
}  # fmt: skip
ADAPTER_DEFAULTS: Mapping[str, object] = {"use_peft": True, "lora_r": 8, "lora_alpha": 8}
# What LoraConfig may be given without a change of meaning.
ADAPTERS_AS_HERE: Mapping[str, tuple[object, ...]] = {
    "bias": ("none",), "task_type": ("CAUSAL_LM",), "inference_mode": (False,), "fan_in_fan_out": (False,),
}  # fmt: skip


def constants(tree: ast.Module) -> dict[str, object]:
    """`Class.NAME` of classes that hold literals, and `args.flag` where `args` came from a parser: their defaults."""
    flags: dict[str, object] = {}
    held: dict[str, object] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=str(flag)), *_]):
                flags |= {flag.lstrip("-").replace("-", "_"): _default(node)}
            case ast.ClassDef(name=name, body=body):
                fields = dict(_fields(body))
                flags |= fields
                held |= {f"{name}.{field}": value for field, value in fields.items()}
    parsing = {*PARSES, *_parsing_functions(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _calls(node.value, parsing):
            owners = {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
            held |= {f"{owner}.{flag}": value for owner in owners for flag, value in flags.items()}
    return {name: value for name, value in held.items() if value is not UNKNOWN}


def flags_in(node: ast.expr, known: Mapping[str, object]) -> list[str]:
    """The flags or constants of classes that an expression reads."""
    return [
        f"{each.value.id}.{each.attr}"
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.value, ast.Name)
        and f"{each.value.id}.{each.attr}" in known
    ]


def adapters(tree: ast.Module, known: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Settings for the LoraConfig of a script, and what of it was not read; empty where it builds none, or several.

    Where the script makes it only under a condition, it is read as made, and that is said.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) == "LoraConfig"]
    if len(calls) != 1:
        return {}, [f"LoraConfig is built {len(calls)} times: give use_peft, lora_r, …"] if calls else []
    (call,) = calls
    found, notes = dict(ADAPTER_DEFAULTS), []
    for word in call.keywords:
        if word.arg is None:
            notes.append(f"line {call.lineno}: LoraConfig({ast.unparse(word)[:60]}) was not read")
            continue
        value = literal(word.value, known)
        if word.arg in ADAPTERS_AS_HERE and (value in ADAPTERS_AS_HERE[word.arg] or _is_task(word.value)):
            continue
        if word.arg in OF_ADAPTERS and value is not UNKNOWN:
            found[OF_ADAPTERS[word.arg]] = value
        else:
            notes.append(f"line {call.lineno}: LoraConfig({ast.unparse(word)[:60]}) was not read")
    under = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp) and call in ast.walk(node)]
    if under:
        test = ast.unparse(under[-1].test)[:60]
        notes.append(f"line {call.lineno}: adapters are put on if {test}; else leave use_peft out")
    return found, notes


def model_types(tree: ast.Module, known: Mapping[str, object]) -> set[str]:
    """The types that `from_pretrained` of causal language models is asked for."""
    return {str(each) for each in _asked_types(tree, known)}


def _asked_types(tree: ast.Module, known: Mapping[str, object]) -> Iterator[object]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=kind), attr="from_pretrained"), keywords=words) if (
                "CausalLM" in kind
            ):
                for word in words:
                    value = literal(word.value, known)
                    if word.arg in ("torch_dtype", "dtype") and value is not UNKNOWN:
                        yield value
                    elif word.arg is None and isinstance(value, dict):
                        yield from (each for name, each in value.items() if name in ("torch_dtype", "dtype"))


def _is_task(node: ast.expr) -> bool:
    """TaskType.CAUSAL_LM."""
    return isinstance(node, ast.Attribute) and node.attr == "CAUSAL_LM"


def _default(call: ast.Call) -> object:
    """That of a flag; one that is switched on is off at first."""
    words = {word.arg: literal(word.value, {}) for word in call.keywords}
    return words.get("default", False if words.get("action") == "store_true" else UNKNOWN)


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, object]]:
    """Names in a class with the literal, or the default of `field(…)`, that they are set to."""
    for statement in body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, _field_default(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, _field_default(value)


def _field_default(value: ast.expr) -> object:
    if isinstance(value, ast.Call) and called(value) == "field":
        return next((literal(word.value, {}) for word in value.keywords if word.arg == "default"), UNKNOWN)
    return literal(value, {})


def _parsing_functions(tree: ast.Module) -> Iterator[str]:
    """Functions of the script that return what a parser gives."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        returns = any(isinstance(each, ast.Return) for each in ast.walk(node))
        if returns and _calls(node, PARSES):
            yield node.name


def _calls(node: ast.AST, names: Collection[str]) -> bool:
    """Whether one of these functions is called within a node."""
    return any(isinstance(each, ast.Call) and called(each) in names for each in ast.walk(node))
