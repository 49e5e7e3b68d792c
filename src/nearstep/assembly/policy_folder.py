"""How the policy comes from a folder or hub name: a whole model, or adapters that train on or are merged."""

from collections.abc import Callable

from torch import nn

from nearstep.assembly.inputs import RunInputs
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.dtypes import DTYPES
from nearstep.models.load import check_folder, family_of, load_adapted_policy, load_policy
from nearstep.models.quantised import four_bit
from nearstep.models.unsloth_loading import load_adapted_by_unsloth, load_by_unsloth


def load_policy_of(name: str, config: PPOConfig, inputs: RunInputs, notes: list[str]) -> nn.Module:
    """The policy of a folder or hub name. Adapters in it train on, unless the settings ask for new ones."""
    check_folder(name, "model")
    if config.model_loader == "unsloth":
        return _load_by_unsloth(name, config, notes)
    load: Callable[..., nn.Module] = load_policy
    if holds_adapters(name) and not wants_new_adapters(config, inputs):
        load = load_adapted_policy
        notes.append("The policy goes on training the adapters in its folder.")
    elif holds_adapters(name):
        notes.append("The adapters in the policy's folder are merged into its weights; new ones train on top of them.")
    policy: nn.Module = load(
        name,
        role="model",
        dtype=DTYPES[config.dtype],
        trust=config.trust,
        base=base_under_adapters(config, name),
        bits=four_bit(config, DTYPES[config.dtype]),
    )
    return policy


def wider_type(given: nn.Module | str, config: PPOConfig) -> str | None:
    """The type in which a folder has the policy, where the run trains and saves it in another; None where it is the
    same, or where only adapters train."""
    if isinstance(given, nn.Module) or holds_adapters(given) or config.load_in_4bit:
        return None
    stored = str(family_of(given, trust=config.trust).dtype).removeprefix("torch.")
    return None if stored not in (*DTYPES, "float16") or stored == config.dtype else stored


def type_note(stored: str, config: PPOConfig) -> str:
    """What is said of it when the run begins."""
    said = f"The policy's folder is in {stored}: it is trained and saved in {config.dtype}"
    if stored == "float16":
        return f"{said}; gradients and steps are too small for float16."
    return f"{said}. dtype = {stored} keeps its type (narrow weights learn through float32 masters)."


def _load_by_unsloth(name: str, config: PPOConfig, notes: list[str]) -> nn.Module:
    """The same by unsloth. New ones over adapters in the folder are refused before."""
    bits, dtype = config.load_in_4bit, DTYPES[config.dtype]
    if holds_adapters(name):
        notes.append("The policy goes on training the adapters in its folder.")
        base = base_under_adapters(config, name)
        return load_adapted_by_unsloth(name, role="model", dtype=dtype, trust=config.trust, in_4bit=bits, base=base)
    beside = base_under_adapters(config, name)  # where the weights come without a tokenizer
    loaded: nn.Module = load_by_unsloth(
        name, role="model", dtype=dtype, trust=config.trust, in_4bit=bits, tokenizer=beside
    )
    return loaded


def base_under_adapters(config: PPOConfig, policy: nn.Module | str) -> str | None:
    """The model under a folder of adapters where the settings name it beside them; else the folder says."""
    return None if isinstance(policy, nn.Module) or config.model_name_or_path == policy else config.model_name_or_path


def wants_new_adapters(config: PPOConfig, inputs: RunInputs) -> bool:
    """Whether the settings or the user's objects ask for fresh adapters."""
    return config.use_peft or inputs.peft_config is not None
