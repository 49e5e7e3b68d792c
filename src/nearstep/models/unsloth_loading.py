"""How unsloth loads a policy and puts LoRA on it. It is imported here and nowhere else.

What it changes beside is put back: the global random generators, and what it writes into the model's configuration for
its own generation. Its gradient checkpointing stays off, for layers are recomputed by ours. Whether its forward passes
give each row what it gives alone is proved for this model as for any other (`forward/probing`).
"""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.import_order import import_unsloth
from nearstep.common.random_streams import stream_seed
from nearstep.common.trust import Trust
from nearstep.config.shared import ModelSettings
from nearstep.models.adapter_folders import fit_rows, put_on, read_adapters
from nearstep.models.adapters import adapters_of, check_merging, check_norms, lora_from, targets
from nearstep.models.limits import Limits
from nearstep.models.load import check_weights, no_loading_report
from nearstep.models.own_code import code_arguments
from nearstep.models.quantised import is_quantised
from nearstep.models.roles import transformers_model
from nearstep.models.weight_files import reading, weight_arguments

SETTING = "model_loader = unsloth"
NO_LIMIT = 2**17  # tokens of a row, for families whose configuration names no most
QUANTISED = "quantization_config"
RESTORED = ("use_cache", "pad_token_id")  # in the configuration, which is saved with the policy


def check_unsloth(*, is_object: bool, adapts: bool, own_adapters: bool, merges: bool, on_cpu: bool) -> None:
    """Raise ConfigError, before weights are loaded, where unsloth cannot load the policy, or would in vain.

    `adapts`: adapters train; `own_adapters`: they come from a configuration of peft that was passed; `merges`: over
    those of a folder. `on_cpu`: the run stays off a GPU that may be there.
    """
    reason = None
    if is_object:
        reason = "loads from a folder or the hub, and model was passed as an object. Leave the setting out: a model of "
        reason += "FastLanguageModel may be passed as it is"
    elif not adapts:
        reason = "loads what adapters are trained on. Set use_peft, or give a folder of adapters"
    elif own_adapters:
        reason = (
            "puts LoRA on by lora_r, lora_alpha and the other lora_ settings, and peft_config was passed: use these"
        )
    elif merges:
        reason = (
            "and use_peft would merge the adapters of the folder and put new ones on top. Train these on (without "
            "use_peft), or save the merged model first"
        )
    if reason is not None:
        raise ConfigError(f"{SETTING} {reason}")
    import_unsloth(SETTING, on_cpu=on_cpu)
    device = _package().DEVICE_TYPE
    if device not in ("cpu", "cuda", "hip"):
        raise ConfigError(f"{SETTING}: it works on {device} here, and runs are on a CPU or a GPU of CUDA or ROCm")
    if on_cpu and device != "cpu":
        raise ConfigError(
            f"use_cpu: unsloth was imported for the GPU ({device}). Set UNSLOTH_FORCE_CPU=1 in the environment before "
            "it is imported, or leave use_cpu out"
        )


def load_by_unsloth(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust, in_4bit: bool, tokenizer: str | None = None
) -> PreTrainedModel:
    """The causal language model in a folder without adapters, or of the hub under exactly this name, by unsloth.

    It reads a tokenizer too, that of `tokenizer` where this is given; the run has its own. Raises ModelError for what
    cannot be read, for missing weights, and where unsloth loaded other types of weights than were asked for.
    """
    allowed = code_arguments(name, role, trust)
    files = weight_arguments(name, role, trust, "AutoModelForCausalLM")
    with _generators_kept():
        config = _configuration_of_complete(name, role, allowed, files)
    in_4bit = in_4bit or bool((config.to_dict().get(QUANTISED) or {}).get("load_in_4bit"))
    named = {} if tokenizer is None else {"tokenizer_name": tokenizer}
    with reading("causal language model (unsloth)", name, role), _generators_kept(), redirect_stdout(sys.stderr):
        model, _ = _package().FastLanguageModel.from_pretrained(
            model_name=name,
            max_seq_length=Limits.of(config).positions or NO_LIMIT,  # it cuts longer inputs without a word
            dtype=dtype,
            load_in_4bit=in_4bit,
            use_gradient_checkpointing=False,
            use_exact_model_name=True,  # else another repository, of weights in 4 bits, may stand in
            offload_embedding=False,
            **allowed,
            **files,
            **named,
        )
    loaded: PreTrainedModel = model
    _restore(loaded.config, vars(config))
    _check_types(loaded, role, dtype=dtype, in_4bit=in_4bit)
    return loaded


def load_adapted_by_unsloth(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust, in_4bit: bool, base: str | None = None
) -> nn.Module:
    """A folder of adapters as a peft model that trains them on, over the model that they name, or over `base`, which
    unsloth loads. Raises ModelError as `load_by_unsloth` does."""
    folder = read_adapters(name, role, base=base, trust=trust)
    if folder.holds_everything:
        raise ModelError(
            f"{role}: the folder {name!r} holds a model and adapters on it, and unsloth looks for the model elsewhere. "
            "Keep them in two folders"
        )
    trusted = trust if base is not None else trust.for_unnamed()
    model = load_by_unsloth(folder.base, role=role, dtype=dtype, trust=trusted, in_4bit=in_4bit)
    fit_rows(model, folder)
    return put_on(model, folder)


def adapt_by_unsloth(model: nn.Module, config: ModelSettings, *, seed: int, role: str = "model") -> nn.Module:
    """The model with fresh LoRA by the settings. Left out, the modules are unsloth's choice: all seven projections.

    Raises ConfigError for modules that are named wrongly, ModelError where adapters cannot be put on or merged.
    """
    lora_from(config)  # which refuses what is named wrongly
    before = dict(vars(transformers_model(model, role).config))
    chosen: dict[str, Any] = {}
    if config.lora_target_modules is not None:
        chosen["target_modules"] = targets(config.lora_target_modules)
    if config.use_dora:
        chosen["use_dora"] = True
    try:
        with _generators_kept(), redirect_stdout(sys.stderr):
            adapted: nn.Module = _package().FastLanguageModel.get_peft_model(
                model,
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=0.0,
                bias="none",
                use_rslora=config.use_rslora,
                use_gradient_checkpointing=False,
                random_state=stream_seed(seed, "adapters") % 2**32,  # numpy takes no more
                **chosen,
            )
    except Exception as error:  # of peft, and of unsloth's own checks
        raise ModelError(f"{role}: unsloth could not add the adapters: {error}") from error
    _restore(transformers_model(adapted, role).config, before)
    if config.use_dora:
        check_norms(adapted, role)
    check_merging(adapted, role)
    return adapted


def loading_note(policy: nn.Module) -> str:
    """What the user should know of how unsloth brought the policy."""
    package, names = _package(), adapters_of(policy).target_modules
    shown = names if isinstance(names, str) else ", ".join(sorted(names))
    return f"The policy was loaded by unsloth {package.__version__} on {package.DEVICE_TYPE}, with adapters on {shown}."


def _package() -> Any:
    import unsloth

    return unsloth


def _configuration_of_complete(
    name: str, role: str, allowed: dict[str, Any], files: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of a folder whose weights are all there, told without loading them: unsloth passes over missing
    ones, which are random then. Of quantised weights none is named missing."""
    with reading("causal language model", name, role), no_loading_report():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **allowed)
        if QUANTISED in vars(config):
            return config
        _, info = AutoModelForCausalLM.from_pretrained(
            name, device_map="meta", output_loading_info=True, **allowed, **files
        )
    check_weights(info["missing_keys"], name, role)
    return config


def _restore(config: PreTrainedConfig, before: Mapping[str, object]) -> None:
    for field in RESTORED:
        if field in before:
            setattr(config, field, before[field])


def _check_types(model: PreTrainedModel, role: str, *, dtype: torch.dtype, in_4bit: bool) -> None:
    """Raise ModelError for other types of weights than were asked for: unsloth falls back to them, and says so in a
    line of its own at most."""
    if in_4bit and not is_quantised(model):
        raise ModelError(
            f"{role}: unsloth did not load the weights in 4 bits (its reason stands above): on this machine, or for "
            "layers of these sizes, bitsandbytes cannot. Leave load_in_4bit out"
        )
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if dtype not in kinds:
        raise ModelError(
            f"{role}: unsloth loaded weights of {', '.join(map(str, kinds))} where dtype = {dtype} was asked for: this "
            "machine may not compute in it. Give a dtype that it has"
        )


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the global generators back, which unsloth sets for its own draws."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
