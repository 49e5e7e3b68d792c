"""What users pass to the trainers in Python: taken as it is meant, or refused by the name of its argument."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.places import expanded
from nearstep.common.plugins import made, need_package
from nearstep.common.spelling import nearest

T = TypeVar("T")

if TYPE_CHECKING:
    GivenModel = nn.Module | str | Path | None
    GivenTokenizer = PreTrainedTokenizerBase | str | Path | None
    GivenReward = Callable[..., Any] | nn.Module | str | Path
    GivenRewards = GivenReward | Sequence[GivenReward] | None
else:
    # What is wrong is refused here, in our words, and not by a checker of types that stands in front of the call.
    GivenModel = GivenTokenizer = GivenReward = GivenRewards = object

MODEL = "a model, its folder or its hub name"
# Arguments of other trainers: what to do instead, and the values that ask for nothing.
FOREIGN: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "tokenizer": ("give processing_class", ()),
    "config": ("give args", ()),
    "dataset": ("give train_dataset", ()),
    "policy": ("give model", ()),
    "policy_model": ("give model", ()),
    "ref_policy": ("give ref_model", ()),
    "critic": ("give value_model", ()),
    "critic_model": ("give value_model", ()),
    "reward_tokenizer": ("give reward_processing_class", ()),
    "reward_processing_classes": ("give reward_processing_class", (None,)),
    "data_collator": ("rows are tokenised and batched here", (None,)),
    "optimizers": ("optim and lr_scheduler_type of args name them", (None, (None, None))),
    "optimizer": ("optim of args names it", (None,)),
    "compute_metrics": ("a reward function logs numbers by log_metric, a callback by on_log", (None,)),
    "formatting_func": ("rows are prompts already: map the data set", (None,)),
}


def place_or(value: object) -> object:
    """A text or path with `~` and `$NAME` written out; anything else as it is."""
    return expanded(os.fspath(value)) if isinstance(value, str | os.PathLike) and value != "" else value


def places_or(value: object) -> object:
    """The same for a list of texts and paths; any other list as it is."""
    if isinstance(value, list | tuple) and any(isinstance(each, str | os.PathLike) for each in value):
        return [place_or(each) for each in value]
    return place_or(value)


def entries(value: object) -> tuple[object, ...]:
    """One object or a list of them as a tuple; None is none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple | set) else (value,)


def given_settings(value: object, kind: type[T], trainer: str) -> T:
    """The settings. Raises ConfigError for anything but an object of their class."""
    if isinstance(value, kind):
        return value
    name = kind.__name__
    by_hand = f"{name}(**settings)" if isinstance(value, Mapping) else f"{name}(…)"
    raise _refusal("args", value, f"{name}, which {trainer} takes: write {by_hand}")


def given_model(value: object, name: str) -> nn.Module | str | None:
    """A model or a place as text. Raises ConfigError for anything else."""
    found = place_or(value)
    if found is None or (isinstance(found, str | nn.Module) and found != ""):
        return found
    raise _refusal(name, value, MODEL)


def given_reward_models(value: object) -> tuple[Any, ...]:
    """Reward models, one or several, and functions among them. Raises ConfigError for anything else."""
    found = tuple(map(place_or, entries(value)))
    for each in found:
        if inspect.isclass(each) or each == "" or not (isinstance(each, str | nn.Module) or callable(each)):
            raise _refusal("reward_model", each, f"{MODEL}, a reward function, or a list of them")
    return found


def given_reward_functions(value: object) -> tuple[Any, ...]:
    """Reward functions, one or several; of classes instances. Raises ConfigError for what cannot be called."""
    if isinstance(value, Mapping):
        raise _refusal("reward_funcs", value, "a function or a list of functions; their own names are shown")
    found = tuple(made(place_or(each), "reward_funcs", ConfigError) for each in entries(value))
    for each in found:
        if isinstance(each, str) and each.endswith(".py"):
            raise ConfigError(f"reward_funcs: {each} names no function; write file.py:name")
        if each == "" or not (isinstance(each, str) or callable(each)):
            may_be = "a function, file.py:name, the name of a built-in one, a reward model, or a list of them"
            raise _refusal("reward_funcs", each, may_be)
    return found


def given_tokenizer(value: object, name: str) -> PreTrainedTokenizerBase | str | None:
    """A tokenizer or its place as text. Raises ConfigError for anything else, such as a processor of images."""
    found = place_or(value)
    if found is None or (isinstance(found, str | PreTrainedTokenizerBase) and found != ""):
        return found
    raise _refusal(name, value, "a tokenizer of transformers (AutoTokenizer.from_pretrained), its folder or hub name")


def given_adapters(value: object, argument: str = "peft_config") -> Any:
    """A configuration of adapters. Raises ConfigError for anything else."""
    if value is None:
        return None
    need_package("peft", "peft", argument, ConfigError)
    from peft import PeftConfig

    if isinstance(value, PeftConfig):
        return value
    raise _refusal(argument, value, "an object such as peft.LoraConfig(r=16); or set use_peft and lora_… in args")


def given_callbacks(value: object) -> tuple[Any, ...]:
    """Callbacks, one or several, of classes instances. Raises ConfigError for what is none."""
    found = tuple(made(each, f"callbacks: {shorten(each)}", ConfigError) for each in entries(value))
    for number, each in enumerate(found):
        if not isinstance(each, TrainerCallback):
            may_be = "a callback, an object whose class derives from transformers.TrainerCallback"
            raise _refusal(f"callbacks[{number}]", each, may_be)
    return found


def is_named(given: object) -> bool:
    """Whether something is a name, or a list of names."""
    several = given if isinstance(given, list) and given else [given]
    return all(isinstance(each, str) for each in several)


def unnamed(given: Mapping[str, object]) -> list[str]:
    """What is no name among arguments, each in a line: what no file of settings can hold."""
    objects = {name: each for name, each in given.items() if each is not None and not is_named(each)}
    return [f"{name}: {_described(each)}" for name, each in objects.items()]


def refuse_foreign(foreign: Mapping[str, object], trainer: type) -> None:
    """Raise ConfigError for arguments that a trainer does not have; those that ask for nothing pass."""
    known = list(inspect.signature(trainer).parameters)
    for name, value in foreign.items():
        sentence, harmless = FOREIGN.get(name, ("", ()))
        if any(value is each or value == each for each in harmless):
            continue
        near = nearest(name, known)
        meant = sentence or (f"did you mean {near}?" if near else f"it takes {', '.join(known[:-1])}")
        raise ConfigError(f"{trainer.__name__} has no argument {name}: {meant}")


def _refusal(name: str, value: object, may_be: str) -> ConfigError:
    return ConfigError(f"{name}: got {_described(value)}. It may be {may_be}.")


def _described(value: object) -> str:
    """What a value is, in a few words; its contents where they are short."""
    if inspect.isclass(value):
        return f"the class {value.__name__}, not an object of it"
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict) and len(value) > 5:
        return f"{kind} of {len(value):,} entries"
    if type(value) in (bool, int, float, str, list, tuple, dict):
        return f"{shorten(value, 60)} ({kind})"
    if isinstance(value, PreTrainedModel) and value.config.name_or_path:
        return f"an object of {kind}, from {value.config.name_or_path}"
    return f"the function {value.__name__}" if inspect.isroutine(value) else f"an object of {kind}"
