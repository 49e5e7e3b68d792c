"""How a Python script of another library is read, by its syntax alone: nothing of it runs."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

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
# Arguments by their place, of trainers and settings.
OF_PPO = (
    "args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model", "data_collator",
    "eval_dataset",
)  # fmt: skip
OF_GROUPS = ("model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class")  # TRL's DPPO
FIRST_SETTING = {"ModelConfig": "model_name_or_path", "ScriptArguments": "dataset_name"}  # of others output_dir
CHOOSES_ROWS = ("select", "filter", "train_test_split", "take", "skip", "shard")
FILE_KINDS = ("json", "csv", "parquet", "text")  # of load_dataset, whose files data_files names
UNKNOWN = object()


@dataclass
class ScriptReading:
    """What the assignments and calls of a script say."""

    values: dict[str, object] = field(default_factory=dict)  # of names that are set to something literal
    places: dict[str, object] = field(default_factory=dict)  # names that hold a model or data set → where it comes from
    data: set[str] = field(default_factory=set)  # those of them that hold a data set
    holders: set[str] = field(default_factory=set)  # names that hold settings
    later: list[tuple[str, ast.keyword]] = field(default_factory=list)  # settings.name = value, by what holds them
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
        return Foreign("aligntune", _keywords(found.factories[-1].keywords, found), tuple(found.notes))
    if found.names & set(CLASSIC) or (found.steps and found.trainers):
        return Foreign("trl_classic", {}, tuple(found.notes))
    if not found.configs and not found.trainers:
        raise ConfigError(
            f"{name}: no call of {', '.join((*TRAINERS, 'create_rl_trainer'))} is in it. Give the file that builds "
            "the trainer, or the script that launches it"
        )
    settings: dict[str, object] = {}
    for call in found.configs:
        first = FIRST_SETTING.get(_called(call), "output_dir")
        settings |= _keywords([*_by_place(call, (first,), found), *call.keywords], found)
    words = [word for call in found.trainers for word in _arguments(call, found)]
    given = {word.value.id for word in words if word.arg in ("args", "config") and isinstance(word.value, ast.Name)}
    held = [word for owner, word in found.later if owner in found.holders | given]
    settings |= _keywords(held, found)
    _roles(words, found, settings)
    dppo = any(_called(call).startswith("DPPO") for call in (*found.configs, *found.trainers))
    decoupled = any(each in settings for each in DECOUPLED) or "value_model_path" in settings
    kind = "trl" if not dppo else "decoupled_draft" if decoupled else "trl_dppo"
    return Foreign(kind, settings, tuple(found.notes))


def _reading(tree: ast.Module) -> ScriptReading:
    found = ScriptReading()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            _note_assignment(node.targets[0], node.value, found)
        if isinstance(node, ast.Name):
            found.names.add(node.id)
        if isinstance(node, ast.Call):
            called = _called(node)
            found.configs += [node] if called in CONFIGS else []
            found.trainers += [node] if called in TRAINERS else []
            found.factories += [node] if called == "create_rl_trainer" else []
            found.steps |= called == "step" and len(node.args) >= 3
            match node:
                case ast.Call(
                    func=ast.Name(id="setattr"), args=[ast.Name(id=owner), ast.Constant(value=str(name)), value]
                ):
                    found.later.append((owner, ast.keyword(name, value)))
    return found


def _note_assignment(target: ast.expr, value: ast.expr, found: ScriptReading) -> None:
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        found.later.append((target.value.id, ast.keyword(target.attr, value)))
    if not isinstance(target, ast.Name):
        return
    literal = _literal(value, found.values)
    if literal is not UNKNOWN:
        found.values[target.id] = literal
        return
    if isinstance(value, ast.Call) and _called(value) in CONFIGS:
        found.holders.add(target.id)
        return
    place, split = _place(value, found)
    if place is not None:
        found.places[target.id] = place
        found.values[f"{target.id}@split"] = split
        if any(
            (isinstance(each, ast.Name) and each.id in found.data)
            or (isinstance(each, ast.Call) and _called(each) == "load_dataset")
            for each in ast.walk(value)
        ):
            found.data.add(target.id)


def _arguments(call: ast.Call, found: ScriptReading) -> list[ast.keyword]:
    """The arguments of a trainer by name. TRL's divergence PPO begins with the model, the others with the settings."""
    first = call.args[0] if call.args else None
    settings_first = (isinstance(first, ast.Name) and first.id in found.holders) or isinstance(first, ast.Call)
    groups = _called(call).startswith("DPPO") and not settings_first
    return [*_by_place(call, OF_GROUPS if groups else OF_PPO, found), *call.keywords]


def _by_place(call: ast.Call, names: tuple[str, ...], found: ScriptReading) -> list[ast.keyword]:
    """What a call is given by place, as if by name; what has no name here is noted."""
    for beyond in call.args[len(names) :]:
        found.notes.append(f"line {beyond.lineno}: {ast.unparse(beyond)[:80]} is given by place and was not read")
    return [ast.keyword(name, value) for name, value in zip(names, call.args, strict=False)]


def _roles(words: list[ast.keyword], found: ScriptReading, settings: dict[str, object]) -> None:
    """Models and data sets that a trainer is given."""
    for word in words:
        if word.arg is None:
            continue
        setting = {**ROLES, "train_dataset": "dataset_name", "eval_dataset": "eval_dataset_name"}.get(word.arg)
        place, split = _place(word.value, found)
        if setting is not None and place is not None:
            settings.setdefault(setting, place)
            if setting == "dataset_name" and split not in (None, "train"):
                settings.setdefault("dataset_train_split", split)
            if setting == "eval_dataset_name" and split is not None and not PurePath(str(place)).suffix:
                settings.setdefault("dataset_test_split", split)
        elif (setting is not None or word.arg in OBJECTS) and ast.unparse(word.value) != "None":
            found.notes.append(f"{word.arg} = {ast.unparse(word.value)[:80]}: what it is, only the script knows")


def _place(node: ast.expr, found: ScriptReading) -> tuple[object, str | None]:
    """Where a model or data set comes from, and its split; None for what only the script knows."""
    literal = _literal(node, found.values)
    if isinstance(literal, str):
        return literal, None
    match node:
        case ast.Name(id=name) if name in found.places:
            split = found.values.get(f"{name}@split")
            return found.places[name], split if isinstance(split, str) else None
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(part))):  # dataset["test"]
            place, split = _place(owner, found)
            return place, split or part
        case ast.Call(func=ast.Attribute(value=owner, attr=method)):  # dataset.map(…)
            place, split = _place(owner, found)
            if place is not None:
                if method in CHOOSES_ROWS:
                    found.notes.append(f"line {node.lineno}: .{method}(…) chooses rows: all of {place} are taken here")
                return place, split or ("train" if method == "train_test_split" else None)
        case ast.Call(args=[*given]):  # prepare(dataset, tokenizer)
            for each in given:
                if any(isinstance(inner, ast.Name) and inner.id in found.data for inner in ast.walk(each)):
                    return _place(each, found)
    return _loaded(node, found)


def _loaded(node: ast.expr, found: ScriptReading) -> tuple[object, str | None]:
    """By the first call in an expression that loads a model or data set."""
    for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
        if _called(call) not in ("from_pretrained", "load_dataset") or not call.args:
            continue
        words = {word.arg: _literal(word.value, found.values) for word in call.keywords}
        place, split = _literal(call.args[0], found.values), words.get("split")
        if _called(call) == "load_dataset" and place in FILE_KINDS:
            place, split = words.get("data_files"), "train" if split is None else split
            if isinstance(place, dict | list) and len(place) == 1:
                (place,) = place.values() if isinstance(place, dict) else place
        if isinstance(place, str | list):
            return place, split if isinstance(split, str) else None
    return None, None


def _keywords(words: list[ast.keyword], found: ScriptReading) -> dict[str, object]:
    """The keyword arguments of a call; what is computed is noted."""
    settings: dict[str, object] = {}
    for word in words:
        value = _literal(word.value, found.values)
        if word.arg is None:
            if isinstance(value, dict):
                settings |= {str(name): each for name, each in value.items()}
            else:
                found.notes.append(
                    f"line {word.value.lineno}: **{ast.unparse(word.value)} is not known without running it"
                )
            continue
        if value is UNKNOWN:
            value, _ = _place(word.value, found)
            if value is None:
                found.notes.append(
                    f"line {word.value.lineno}: {word.arg} = {ast.unparse(word.value)[:80]} is computed when the "
                    "script runs"
                )
                continue
        settings[word.arg] = value
    return settings


def _literal(node: ast.expr, known: Mapping[str, object]) -> object:
    """The value of a literal, of a name that was set to one, or of plain arithmetic; UNKNOWN for anything else."""
    match node:
        case ast.Name(id=name):
            return known.get(name, UNKNOWN)
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            found = [_literal(entry, known) for entry in entries]
            return UNKNOWN if UNKNOWN in found else found
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            named = {word.arg: _literal(word.value, known) for word in words}
            return UNKNOWN if UNKNOWN in named.values() or None in named else named
        case ast.BinOp(left=first, right=second, op=op):
            return _arithmetic(_literal(first, known), _literal(second, known), op)
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return value


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
    return UNKNOWN


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
