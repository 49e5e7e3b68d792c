"""How a Python script of another library is read, by its syntax alone: nothing of it runs."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from nearstep.common.errors import ConfigError
from nearstep.migration.foreign import Foreign
from nearstep.migration.launches import DECOUPLED

CONFIGS = ("PPOConfig", "PPOv2Config", "DPPOConfig", "ModelConfig", "ScriptArguments")
TRAINERS = ("PPOTrainer", "PPOv2Trainer", "DPPOTrainer")
CLASSIC = ("AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead")
ROLES = {
    "model": "model_name_or_path", "policy": "model_name_or_path", "ref_model": "ref_model_path",
    "ref_policy": "ref_model_path", "reward_model": "reward_model_path", "value_model": "value_model_path",
}  # fmt: skip
OBJECTS = ("reward_funcs", "callbacks", "peft_config")  # arguments that no setting of a file can hold
FILE_KINDS = ("json", "csv", "parquet", "text")  # of load_dataset, whose files data_files names
UNKNOWN = object()


@dataclass
class ScriptReading:
    """What the assignments and calls of a script say."""

    values: dict[str, object] = field(default_factory=dict)  # of names that are set to something literal
    places: dict[str, str] = field(default_factory=dict)  # names that hold a model or data set → where it comes from
    configs: list[ast.Call] = field(default_factory=list)
    trainers: list[ast.Call] = field(default_factory=list)
    factories: list[ast.Call] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    steps: bool = False
    notes: list[str] = field(default_factory=list)


def read_script(text: str, name: str) -> Foreign:
    """The settings of a script. `library` is "trl_classic" for one that calls `step` itself: its code stays.

    Raises ConfigError for text that is no Python, and for a script in which nothing of PPO is found.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{name}, line {error.lineno}: no Python: {error.msg}") from None
    found = _reading(tree)
    if found.factories:
        return Foreign("aligntune", _keywords(found.factories[-1], found), tuple(found.notes))
    if found.names & set(CLASSIC) or (found.steps and found.trainers):
        return Foreign("trl_classic", {}, tuple(found.notes))
    if not found.configs and not found.trainers:
        raise ConfigError(
            f"{name}: no call of {', '.join((*TRAINERS, 'create_rl_trainer'))} is in it. Give the file that builds "
            "the trainer, or the script that launches it"
        )
    settings: dict[str, object] = {}
    for call in found.configs:
        settings |= _keywords(call, found)
    for call in found.trainers:
        _roles(call, found, settings)
    dppo = any(_called(call).startswith("DPPO") for call in (*found.configs, *found.trainers))
    decoupled = any(each in settings for each in DECOUPLED) or "value_model_path" in settings
    kind = "trl" if not dppo else "decoupled_draft" if decoupled else "trl_dppo"
    return Foreign(kind, settings, tuple(found.notes))


def _reading(tree: ast.Module) -> ScriptReading:
    found = ScriptReading()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            _note_assignment(node.targets[0].id, node.value, found)
        if isinstance(node, ast.Name):
            found.names.add(node.id)
        if isinstance(node, ast.Call):
            called = _called(node)
            found.configs += [node] if called in CONFIGS else []
            found.trainers += [node] if called in TRAINERS else []
            found.factories += [node] if called == "create_rl_trainer" else []
            found.steps |= called == "step" and len(node.args) >= 3
    return found


def _note_assignment(name: str, value: ast.expr, found: ScriptReading) -> None:
    literal = _literal(value, found.values)
    if literal is not UNKNOWN:
        found.values[name] = literal
        return
    place, split = _loaded(value, found)
    if place is not None:
        found.places[name] = place
        found.values[f"{name}@split"] = split
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):  # dataset = dataset.map(…)
        owner = value.func.value
        if isinstance(owner, ast.Name) and owner.id in found.places:
            found.places[name] = found.places[owner.id]
            found.values[f"{name}@split"] = found.values.get(f"{owner.id}@split")


def _roles(call: ast.Call, found: ScriptReading, settings: dict[str, object]) -> None:
    """Models and data sets that a trainer is given."""
    for word in call.keywords:
        if word.arg is None:
            continue
        setting = {**ROLES, "train_dataset": "dataset_name", "eval_dataset": "eval_dataset_name"}.get(word.arg)
        place, split = _place(word.value, found)
        if setting is not None and place is not None:
            settings.setdefault(setting, place)
            if setting == "dataset_name" and split not in (None, "train"):
                settings.setdefault("dataset_train_split", split)
        elif (setting is not None or word.arg in OBJECTS) and ast.unparse(word.value) != "None":
            found.notes.append(f"{word.arg} = {ast.unparse(word.value)[:80]}: what it is, only the script knows")


def _loaded(node: ast.expr, found: ScriptReading) -> tuple[str | None, str | None]:
    """Where a model or data set comes from, and its split, by the first call in an expression that loads one."""
    for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
        if _called(call) not in ("from_pretrained", "load_dataset") or not call.args:
            continue
        words = {word.arg: _literal(word.value, found.values) for word in call.keywords}
        place = _literal(call.args[0], found.values)
        if _called(call) == "load_dataset" and place in FILE_KINDS:
            place = words.get("data_files")
        if isinstance(place, str):
            split = words.get("split")
            return place, split if isinstance(split, str) else None
    return None, None


def _place(node: ast.expr, found: ScriptReading) -> tuple[str | None, str | None]:
    literal = _literal(node, found.values)
    if isinstance(literal, str):
        return literal, None
    if isinstance(node, ast.Name) and node.id in found.places:
        split = found.values.get(f"{node.id}@split")
        return found.places[node.id], split if isinstance(split, str) else None
    return _loaded(node, found)


def _keywords(call: ast.Call, found: ScriptReading) -> dict[str, object]:
    """The keyword arguments of a call; what is computed is noted."""
    settings: dict[str, object] = {}
    for word in call.keywords:
        if word.arg is None:
            found.notes.append(f"line {call.lineno}: **{ast.unparse(word.value)} is not known without running it")
            continue
        value = _literal(word.value, found.values)
        if value is UNKNOWN:
            place, _ = _place(word.value, found)
            if place is None:
                found.notes.append(
                    f"line {word.value.lineno}: {word.arg} = {ast.unparse(word.value)[:80]} is computed when the "
                    "script runs"
                )
                continue
            value = place
        settings[word.arg] = value
    return settings


def _literal(node: ast.expr, known: Mapping[str, object]) -> object:
    """The value of a literal, or of a name that was set to one; UNKNOWN for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, UNKNOWN)
    if isinstance(node, ast.List | ast.Tuple):
        entries = [_literal(entry, known) for entry in node.elts]
        return UNKNOWN if UNKNOWN in entries else entries
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return value


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def with_our_imports(text: str) -> str:
    """A script of TRL up to 0.11 that imports what it used from nearstep.classic; the rest as it is."""
    ours = ("PPOConfig", "PPOTrainer", "AutoModelForCausalLMWithValueHead", "create_reference_model", "LengthSampler")
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "trl":
            continue
        taken = [alias for alias in node.names if alias.name in ours]
        left = [alias for alias in node.names if alias.name not in ours]
        new = f"from nearstep.classic import {', '.join(map(_alias, taken))}\n" if taken else ""
        if left:
            new += f"from {node.module} import {', '.join(map(_alias, left))}  # not in nearstep\n"
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [new]
    return "".join(lines)


def _alias(alias: ast.alias) -> str:
    return alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
