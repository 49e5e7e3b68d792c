"""How a Python script of another library is read, by its syntax alone: nothing of it runs."""

import ast
from dataclasses import dataclass, field
from pathlib import PurePath

from nearstep.common.errors import ConfigError
from nearstep.migration.foreign import Foreign
from nearstep.migration.launches import DECOUPLED
from nearstep.migration.literals import UNKNOWN, called, literal
from nearstep.migration.script_values import adapters, constants, flags_in, model_types

CONFIGS = ("PPOConfig", "PPOv2Config", "DPPOConfig", "ModelConfig", "ScriptArguments")
TRAINERS = ("PPOTrainer", "PPOv2Trainer", "DPPOTrainer")
CLASSIC = ("AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead")
ROLES = {
    "model": "model_name_or_path", "policy": "model_name_or_path", "ref_model": "ref_model_path",
    "ref_policy": "ref_model_path", "reward_model": "reward_model_path", "value_model": "value_model_path",
}  # fmt: skip
OBJECTS = ("reward_funcs", "callbacks", "optimizers")  # arguments that no setting of a file can hold
# Arguments by their place, of trainers and settings.
OF_PPO = (
    "args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model", "data_collator",
    "eval_dataset",
)  # fmt: skip
OF_GROUPS = ("model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class")  # TRL's DPPO
FIRST_SETTING = {"ModelConfig": "model_name_or_path", "ScriptArguments": "dataset_name"}  # of others output_dir
CHOOSES_ROWS = ("select", "filter", "train_test_split", "take", "skip", "shard")
FILE_KINDS = ("json", "csv", "parquet", "text")  # of load_dataset, whose files data_files names


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
    functions: set[str] = field(default_factory=set)  # that the script defines
    steps: bool = False
    notes: list[str] = field(default_factory=list)
    flags: dict[str, object] = field(default_factory=dict)  # args.flag and Class.NAME, with their defaults
    unread: dict[str, str] = field(default_factory=dict)  # settings that only the run computes → how


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
        return _foreign("aligntune", _keywords(found.factories[-1].keywords, found), found)
    if found.names & set(CLASSIC) or (found.steps and found.trainers):
        return _foreign("trl_classic", {}, found)
    if not found.configs and not found.trainers:
        raise ConfigError(
            f"{name}: no call of {', '.join((*TRAINERS, 'create_rl_trainer'))} is in it. Give the file that builds "
            "the trainer, or the script that launches it"
        )
    settings: dict[str, object] = {}
    for call in found.configs:
        first = FIRST_SETTING.get(called(call), "output_dir")
        settings |= _keywords([*_by_place(call, (first,), found), *call.keywords], found)
    words = [word for call in found.trainers for word in _arguments(call, found)]
    given = {word.value.id for word in words if word.arg in ("args", "config") and isinstance(word.value, ast.Name)}
    held = [word for owner, word in found.later if owner in found.holders | given]
    before = set(found.unread)
    settings |= _keywords(held, found)
    for name in found.unread.keys() - before:  # set later, to what is not known: the earlier value is none
        settings.pop(name, None)
    _roles(words, found, settings)
    _adapters(tree, words, found, settings)
    _type(tree, found, settings)
    if not found.configs:
        found.notes.append(
            "its settings come from its command line: give nearstep migrate the script that launches it too"
        )
    dppo = any(called(call).startswith("DPPO") for call in (*found.configs, *found.trainers))
    decoupled = any(each in settings for each in DECOUPLED) or "value_model_path" in settings
    kind = "trl" if not dppo else "decoupled_draft" if decoupled else "trl_dppo"
    return _foreign(kind, settings, found)


def _foreign(kind: str, settings: dict[str, object], found: ScriptReading) -> Foreign:
    """What was found. A later value takes the place of one that could not be read."""
    unread = {name: how for name, how in found.unread.items() if name not in settings}
    return Foreign(kind, settings, tuple(dict.fromkeys(found.notes)), unread=unread)


def _adapters(tree: ast.Module, words: list[ast.keyword], found: ScriptReading, settings: dict[str, object]) -> None:
    """The adapters that the script puts on its policy, by `peft_config` or by itself."""
    given = any(word.arg == "peft_config" and ast.unparse(word.value) != "None" for word in words)
    own = any(isinstance(node, ast.Call) and called(node) == "get_peft_model" for node in ast.walk(tree))
    if not (given or own):
        return
    read, notes = adapters(tree, found.values)
    for name, value in read.items():
        settings.setdefault(name, value)
    found.notes += notes
    if not read and given:
        found.notes.append("peft_config: what it is, only the script knows; give use_peft, lora_r, …")


def _type(tree: ast.Module, found: ScriptReading, settings: dict[str, object]) -> None:
    """The type that the script loads its policy in."""
    types = model_types(tree, found.values) - {"None", "auto"}
    if len(types) == 1 and types <= {"bfloat16", "float32", "float64"}:
        settings.setdefault("dtype", *types)
    elif types:
        found.notes.append(f"models are loaded in {', '.join(sorted(types))}: dtype is float32, bfloat16 or float64")


def _reading(tree: ast.Module) -> ScriptReading:
    found = ScriptReading()
    found.flags = constants(tree)
    found.values |= found.flags
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
                for each, given in zip(names, values, strict=True):
                    _note_assignment(each, given, found)
            case ast.Assign(targets=[target], value=given):
                _note_assignment(target, given, found)
            case ast.FunctionDef(name=function):
                found.functions.add(function)
        if isinstance(node, ast.Name):
            found.names.add(node.id)
        if isinstance(node, ast.Call):
            name = called(node)
            found.configs += [node] if name in CONFIGS else []
            found.trainers += [node] if name in TRAINERS else []
            found.factories += [node] if name == "create_rl_trainer" else []
            found.steps |= name == "step" and len(node.args) >= 3
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
    worth = literal(value, found.values)
    if worth is not UNKNOWN:
        found.values[target.id] = worth
        return
    if isinstance(value, ast.Call) and called(value) in CONFIGS:
        found.holders.add(target.id)
        return
    place, split = _place(value, found)
    if place is not None:
        found.places[target.id] = place
        found.values[f"{target.id}@split"] = split
        if any(
            (isinstance(each, ast.Name) and each.id in found.data)
            or (isinstance(each, ast.Call) and called(each) == "load_dataset")
            for each in ast.walk(value)
        ):
            found.data.add(target.id)


def _arguments(call: ast.Call, found: ScriptReading) -> list[ast.keyword]:
    """The arguments of a trainer by name. TRL's divergence PPO begins with the model, the others with the settings."""
    first = call.args[0] if call.args else None
    settings_first = (isinstance(first, ast.Name) and first.id in found.holders) or isinstance(first, ast.Call)
    groups = called(call).startswith("DPPO") and not settings_first
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
        elif word.arg == "reward_funcs" and (own := _own_functions(word.value, found)):
            found.notes.append(
                f"reward_funcs: put {', '.join(own)} into a file of their own and give reward_funcs "
                f"{' '.join(f'FILE.py:{name}' for name in own)}; functions of (completions, **columns) stay as they are"
            )
        elif (setting is not None or word.arg in OBJECTS) and ast.unparse(word.value) != "None":
            found.notes.append(f"{word.arg} = {ast.unparse(word.value)[:80]}: what it is, only the script knows")
    same = "dataset_name" in settings and settings.get("eval_dataset_name") == settings["dataset_name"]
    if same and settings.get("dataset_test_split") in (None, settings.get("dataset_train_split")):
        place = settings.pop("eval_dataset_name")
        found.notes.append(f"evaluation is on rows of {place} itself: num_eval_rows holds so many out")


def _own_functions(node: ast.expr, found: ScriptReading) -> list[str]:
    """The functions of the script in an argument, if it has nothing else."""
    names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    return names if names and found.functions.issuperset(names) else []


def _place(node: ast.expr, found: ScriptReading) -> tuple[object, str | None]:
    """Where a model or data set comes from, and its split; None for what only the script knows."""
    worth = literal(node, found.values)
    if isinstance(worth, str):
        return worth, None
    match node:
        case ast.Name(id=name) if name in found.places:
            split = found.values.get(f"{name}@split")
            return found.places[name], split if isinstance(split, str) else None
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(part))):  # dataset["test"]
            place, split = _place(owner, found)
            return place, split or part
        case ast.Call(args=[model, *_]) if called(node) == "get_peft_model":
            return _place(model, found)
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
        if called(call) not in ("from_pretrained", "load_dataset"):
            continue
        words = {word.arg: literal(word.value, found.values) for word in call.keywords}
        named = words.get("pretrained_model_name_or_path", words.get("path"))
        place, split = literal(call.args[0], found.values) if call.args else named, words.get("split")
        if called(call) == "load_dataset" and place in FILE_KINDS:
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
        value = literal(word.value, found.values)
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
                found.unread[word.arg] = f"line {word.value.lineno}, {ast.unparse(word.value)[:80]}"
                settings.pop(word.arg, None)  # an earlier value is no longer that of the run
                continue
        elif flags := flags_in(word.value, found.flags):
            found.notes.append(f"{word.arg} = {value}: the script's own default of {', '.join(flags)}")
        settings[word.arg] = value
    return settings
