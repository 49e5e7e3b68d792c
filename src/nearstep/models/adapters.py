"""How adapters come onto a model and into its weights. peft is imported here and nowhere else in this room."""

import copy
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.random_streams import stream_seed
from nearstep.config.shared import ModelSettings
from nearstep.models.adapter_methods import check_method
from nearstep.models.quantised import in_full, is_quantised, quantisation_of

ALL_LINEAR = "all-linear"
POLICY_TASKS, REWARD_TASKS = (None, "CAUSAL_LM"), (None, "SEQ_CLS", "TOKEN_CLS")


def lora_from(config: ModelSettings, *, task: str = "CAUSAL_LM") -> Any:
    """peft's LoraConfig for the settings. Raises ConfigError without peft, and for modules that are named wrongly."""
    whole = config.lora_modules_to_save
    return peft().LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=None if config.lora_target_modules is None else targets(config.lora_target_modules),
        modules_to_save=None if whole is None else [name for word in whole for name in word.split(",")],
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        task_type=task,
    )


def targets(words: Sequence[str], setting: str = "lora_target_modules") -> list[str] | str:
    """Names of modules as a list; `all-linear` or a pattern, which stand alone, as the text that peft takes."""
    names = [name for word in words for name in word.split(",")]
    if all(re.fullmatch(r"[\w.]+", name) for name in names):
        return names
    if len(words) > 1:
        raise ConfigError(
            f"{setting} = {list(words)}: give names of modules (q_proj v_proj), or {ALL_LINEAR} alone, or "
            "one pattern that full names of modules match"
        )
    return words[0]


def check_peft_config(peft_config: Any, tasks: Collection[str | None], argument: str = "peft_config") -> None:
    """Raise ModelError for what is no configuration of peft, for a method that does not fit, and for another task."""
    if not isinstance(peft_config, peft().PeftConfig):
        raise ModelError(
            f"{argument}: got a {type(peft_config).__name__}, which is no configuration of peft. Pass one such as "
            "peft.LoraConfig(r=16)."
        )
    check_method(peft_config, argument, fresh=True)
    if peft_config.task_type not in tasks:
        fitting = " or ".join(str(task) for task in tasks)
        raise ModelError(f"{argument}: its task_type is {peft_config.task_type}, which is another task. Use {fitting}.")


def with_head_trained(peft_config: Any, heads: Sequence[str]) -> Any:
    """The same adapters, and the head trained whole and saved beside them, whatever the configuration forgot."""
    changed = copy.copy(peft_config)
    changed.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or ()), *heads]))
    return changed


def trained_copy(module: nn.Module) -> nn.Module:
    """The copy of a module that peft trains and saves whole, where it does; else the module itself."""
    known = sys.modules.get("peft")
    if known is None or not isinstance(module, known.utils.ModulesToSaveWrapper):
        return module
    copies: nn.ModuleDict = module.modules_to_save
    return next((copies[name] for name in module.active_adapters), module.original_module)


def base_layer(module: object) -> object:
    """The layer under peft's adapters, or in the copy that peft trains whole; else the module itself."""
    known = sys.modules.get("peft")
    if known is None or not isinstance(module, nn.Module):
        return module
    module = trained_copy(module)
    if isinstance(module, known.utils.TrainableTokensWrapper):
        return base_layer(module.original_module)
    return base_layer(module.get_base_layer()) if isinstance(module, _layer_type()) else module


def add_adapters(model: nn.Module, peft_config: Any, *, seed: int, role: str = "model") -> nn.Module:
    """The model with fresh adapters. Raises ModelError if it has some, or if they cannot be put on or merged."""
    if isinstance(model, peft().PeftModel):
        raise ModelError(f"{role}: it is a peft model already; pass either such a model or peft_config, not both")
    own = copy.deepcopy(peft_config)  # peft writes into it which modules it found
    own.inference_mode = False
    try:
        # peft draws from the global generator; it gets one of ours and the caller's is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "adapters"))
            adapted: nn.Module = peft().get_peft_model(model, own)
    except Exception as error:  # each method has errors of its own
        raise ModelError(f"{role}: peft could not add the adapters: {error}") from error
    if own.to_dict().get("use_dora"):
        check_norms(adapted, role)
    check_merging(adapted, role)
    return adapted


def check_norms(model: nn.Module, role: str) -> None:
    """Raise ModelError for rows of zeros under DoRA, which divides by their norms: PAD's embedding is often one."""
    for name, layer in model.named_modules():
        weight = layer.get_base_layer().weight if isinstance(layer, _layer_type()) else None
        if weight is not None and weight.dim() == 2 and bool((weight == 0).all(dim=1).any()):
            raise ModelError(
                f"{role}: DoRA divides by the norm of every row, and {name} has a row of zeros (as PAD's embedding may "
                "be), so its weights would become NaN. Leave it out of target_modules, or use plain LoRA."
            )


def peft() -> Any:
    """The package. Raises ConfigError where it is not installed."""
    try:
        import peft as package
    except ImportError as error:
        raise ConfigError("adapters need peft: pip install 'nearstep[peft]'") from error
    return package


def is_adapted(model: nn.Module) -> bool:
    """Whether peft wraps the model. Without peft installed nothing can be."""
    known = sys.modules.get("peft")
    return known is not None and isinstance(model, known.PeftModel)


def check_adapted(model: nn.Module, role: str) -> None:
    """Raise ModelError where the adapters in use are of a method that does not fit."""
    if is_adapted(model):
        names: list[str] = model.active_adapters  # type: ignore[assignment]
        for name in names:
            check_method(model.peft_config[name], role)  # type: ignore[index]


def require_learning(model: nn.Module, role: str) -> None:
    """Raise ModelError where no weight of the model would learn."""
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ModelError(
            f"{role}: nothing in it would learn: none of its weights requires a gradient. A peft model is loaded for "
            "training with is_trainable=True (PeftModel.from_pretrained(model, folder, is_trainable=True)), or give "
            "the folder of the adapters itself; another model trains after requires_grad_(True), or with peft_config."
        )


def check_merging(model: nn.Module, role: str) -> None:
    """Try on one small layer of each kind what saving does with all. Raises ModelError with peft's reason, and where
    layers share a weight: it would get the sum of their adapters, which is none of what was trained."""
    smallest: dict[object, Any] = {}
    shared: dict[int, str] = {}  # an embedding and its tied head are parted before adapters are merged
    for name, layer in model.named_modules():
        if isinstance(layer, _layer_type()):
            base: Any = layer.get_base_layer()
            first = next((id(weight) for weight in base.parameters()), id(base))
            other = shared.setdefault(first, name)
            if not name.startswith(other) and not _is_tied_end(model, first):
                raise ModelError(
                    f"{role}: {other} and {name} are one weight with an adapter each, which could not be merged "
                    "into it as saving does. Leave these layers out (target_modules), or train all weights"
                )
            kind = type(layer), type(base), any(name == "bias" for name, _ in base.named_parameters())
            size = sum(weight.numel() for weight in base.parameters())
            if kind not in smallest or size < smallest[kind][0]:
                smallest[kind] = size, layer
    for _, layer in smallest.values():
        try:
            copy.deepcopy(layer).merge()
        except Exception as error:  # each method has errors of its own
            raise ModelError(
                f"{role}: the adapters cannot be merged into the weights, as saving does: {str(error).rstrip('.')}. "
                "Change that part of the adapters' configuration."
            ) from error


def _is_tied_end(model: nn.Module, weight: int) -> bool:
    """Whether a weight is that of the embeddings, which the head may share."""
    inner: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    return any(id(own) == weight for end in ends if end is not None for own in end.parameters())


def as_peft_model(model: nn.Module) -> nn.Module:
    """A model whose adapters transformers itself put in (AutoModelForCausalLM on a folder of adapters) as a peft model,
    its adapters ready to train; any other model as it is."""
    if not isinstance(model, PreTrainedModel) or not model._hf_peft_config_loaded:
        return model
    name = model.active_adapters()[0]
    config = copy.deepcopy(model.peft_config[name])
    tensors = peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    take_off(model)
    config.inference_mode = False
    wrapped: nn.Module = peft().get_peft_model(model, config, adapter_name=name)
    named = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    peft().set_peft_model_state_dict(wrapped, named, adapter_name=name)
    return wrapped


def take_off(model: PreTrainedModel) -> None:
    """Put the layers under adapters back in their places, in the model itself; without adapters nothing happens."""
    if "peft" not in sys.modules:
        return
    if model._hf_peft_config_loaded:
        del model.peft_config
        model._hf_peft_config_loaded = False
        del model._weight_conversions  # names of tensors as in the adapters' file, by which the model would be saved
    utils = peft().utils
    done: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        whole = isinstance(module, utils.ModulesToSaveWrapper | utils.TrainableTokensWrapper)
        if (whole or isinstance(module, _layer_type())) and not name.startswith(done):
            plain: nn.Module = module.original_module if whole else module.get_base_layer()
            model.set_submodule(name, plain)
            done += (f"{name}.",)  # one adapter may lie on another


def with_adapters_merged(model: nn.Module, *, in_place: bool = False) -> PreTrainedModel:
    """A copy of a peft model with its adapters added to the base weights, which are whole also where they were packed;
    `in_place` without a copy, after which the peft model is of no use.

    Tied input and output embeddings stay tied where both are still the same, and only there.
    """
    whole = _copy_in_full(model) if is_quantised(model) else model if in_place else copy.deepcopy(model)
    inner: PreTrainedModel = whole.get_base_model()  # type: ignore[operator]
    head, embeddings = base_layer(inner.get_output_embeddings()), base_layer(inner.get_input_embeddings())
    tied = isinstance(head, nn.Linear) and isinstance(embeddings, nn.Module) and head.weight is embeddings.weight
    if tied:  # else adapters of the one would be added to the other
        assert isinstance(head, nn.Linear)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        inner.config.tie_word_embeddings = False
    merged: PreTrainedModel = whole.merge_and_unload()  # type: ignore[operator]
    if tied:
        head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
        if torch.equal(head.weight, embeddings.weight):
            head.weight = embeddings.weight
            merged.config.tie_word_embeddings = True
    return merged


def _copy_in_full(model: nn.Module) -> nn.Module:
    """A copy of a peft model over packed weights whose weights are whole: into others adapters are merged with a second
    rounding to 4 bits."""
    own = {id(each) for each in (*model.parameters(), *model.buffers())}
    base = in_full(without_adapters(model))
    new: dict[int, object] = {id(weight): weight for weight in base.parameters() if id(weight) not in own}
    config, name = copy.deepcopy(adapters_of(model)), model.active_adapters[0]  # type: ignore[index]
    if "init_lora_weights" in vars(config):
        config.init_lora_weights = True  # what is drawn here is replaced, and PiSSA would change the weights
    tensors = peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with torch.random.fork_rng(devices=[]):
        whole: nn.Module = peft().get_peft_model(copy.deepcopy(base, new), config, adapter_name=name)
    peft().set_peft_model_state_dict(whole, tensors, adapter_name=name)
    return whole


def without_adapters(model: nn.Module) -> PreTrainedModel:
    """The model under peft's wrapper as a second set of modules over the same tensors: no weight is copied.

    Adapters of either one do not reach the other.
    """
    shared = (*model.parameters(), *model.buffers(), *quantisation_of(model))
    base: PreTrainedModel = copy.deepcopy(model, {id(each): each for each in shared}).get_base_model()  # type: ignore[operator]
    take_off(base)
    vars(base).pop("peft_config", None)  # what peft notes of the adapters that were taken off
    return base


def trains_under_adapters(model: nn.Module) -> bool:
    """Whether weights train that stay in use with the adapters off, as biases do with bias = all."""
    return any(weight.requires_grad for weight in without_adapters(model).parameters())


def adapters_of(model: nn.Module) -> Any:
    """The configuration of the adapters that a peft model uses now."""
    return model.active_peft_config


def _layer_type() -> Any:
    return peft().tuners.tuners_utils.BaseTunerLayer
