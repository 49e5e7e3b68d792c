"""How models and tokenizers come from a folder or hub name, and what is wrong with those that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from nearstep.algorithm.value_heads import LinearHead, ValueHead
from nearstep.common.errors import ModelError
from nearstep.common.trust import DEFAULT_TRUST, Trust
from nearstep.models.adapter_folders import AdapterFolder, fit_rows, holds_adapters, put_on, read_adapters
from nearstep.models.adapters import take_off, with_adapters_merged
from nearstep.models.classifier import class_to_load, new_scalar_model
from nearstep.models.forward.probing import own_vocabulary
from nearstep.models.head_bias import add_bias, stored_bias
from nearstep.models.output_layers import HEAD_NAMES, exchange_head, output_layer, scalar_head
from nearstep.models.own_code import code_arguments
from nearstep.models.roles import decoder_config, inner_model
from nearstep.models.stored_head import is_linear, remember_head, require_head
from nearstep.models.weight_files import reading, weight_arguments

FIRST_TRY = "or for a first try of nearstep ppo --reward_funcs length, or --random_reward_head: its scores mean nothing"
NOT_OF_A_TRUNK = ("id2label", "label2id", "quantization_config")
MODEL_FILES = ("config.json", "adapter_config.json")


def family_of(
    model: nn.Module | str, *, role: str = "model", base: str | None = None, trust: Trust = DEFAULT_TRUST
) -> PreTrainedConfig:
    """The model's own text configuration, read without loading weights.

    For a folder of adapters it is that of their model, `base` if given, with as many tokens as they were trained with.
    Of a module that is no transformers model it holds the number of its logits and nothing else. Raises ModelError if
    there is none, and for an encoder-decoder model.
    """
    if isinstance(model, nn.Module):
        inner = inner_model(model)
        if not isinstance(inner, PreTrainedModel):
            return PreTrainedConfig(vocab_size=own_vocabulary(inner, role), eos_token_id=None)
        return decoder_config(inner.config, role).get_text_config()
    check_folder(model, role)
    if holds_adapters(model):
        folder = read_adapters(model, role, base=base, trust=trust)
        return _family_under(folder, _for_base(folder, trust, base))
    with reading("model configuration", model, role):
        config = AutoConfig.from_pretrained(model, **code_arguments(model, role, trust))
    return decoder_config(config, role).get_text_config()


def names_of_classes(name: str, *, role: str, trust: Trust = DEFAULT_TRUST) -> list[str]:
    """The classes that a model's configuration names; a folder of adapters says whether it holds a head for scores.

    Raises ModelError if there is none.
    """
    check_folder(name, role)
    if holds_adapters(name):
        return ["ForSequenceClassification" if holds_head(name, role) else "ForCausalLM"]
    with reading("model configuration", name, role):
        config = AutoConfig.from_pretrained(name, **code_arguments(name, role, trust))
    return list(config.architectures or ())


def _family_under(folder: AdapterFolder, trust: Trust) -> PreTrainedConfig:
    if folder.holds_everything:
        allowed = code_arguments(folder.base, folder.role, trust)
        return AutoConfig.from_pretrained(folder.base, **allowed).get_text_config()
    with torch.device("meta"):
        family = family_of(folder.base, role=folder.role, trust=trust)
        allowed = code_arguments(folder.base, folder.role, trust)["trust_remote_code"]
        model = AutoModelForCausalLM.from_config(family, trust_remote_code=allowed)
        fit_rows(model, folder)
    return model.config


def load_adapted_policy(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust = DEFAULT_TRUST, base: str | None = None, bits: Any = None
) -> nn.Module:
    """A folder of adapters as a peft model that trains them on, over the model that they name, or over `base`."""
    folder = read_adapters(name, role, base=base, trust=trust)
    load = _whole_policy if folder.holds_everything else load_policy
    model = load(folder.base, role=role, dtype=dtype, trust=_for_base(folder, trust, base), bits=bits)
    fit_rows(model, folder)
    return put_on(model, folder)


def load_policy(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust = DEFAULT_TRUST, base: str | None = None, bits: Any = None
) -> PreTrainedModel:
    """A causal language model; a folder of adapters gives their model, or `base`, with the adapters merged.

    `bits`: transformers' configuration of a quantisation. Raises ModelError if weights are missing or cannot be read.
    """
    check_folder(name, role)
    if not holds_adapters(name):
        return _whole_policy(name, role=role, dtype=dtype, trust=trust, bits=bits)
    adapted = load_adapted_policy(name, role=role, dtype=dtype, trust=trust, base=base)
    return with_adapters_merged(adapted)


def _whole_policy(name: str, *, role: str, dtype: torch.dtype, trust: Trust, bits: Any = None) -> PreTrainedModel:
    """The model in a folder, without adapters that lie beside it."""
    allowed = code_arguments(name, role, trust) | weight_arguments(name, role, trust, "AutoModelForCausalLM")
    allowed |= {} if bits is None else {"quantization_config": bits}
    with reading("causal language model", name, role), no_loading_report():
        model, info = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **allowed)
    check_weights(info["missing_keys"], name, role)
    take_off(model)
    return model


def load_scalar_model(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust = DEFAULT_TRUST, value_head: ValueHead | None = None
) -> PreTrainedModel:
    """A classification model with one label and a trained head; a missing head is an error, never random.

    A folder of adapters gives the model that they were trained on, with the adapters merged. A critic with `value_head`
    has as many labels as that has outputs, and was saved with it.
    """
    check_folder(name, role)
    value_head = LinearHead() if value_head is None else value_head
    if holds_adapters(name):
        require_head(None, value_head, f"{role}: the folder of adapters {name!r}")
        return with_adapters_merged(load_adapted_scalar_model(name, role=role, dtype=dtype, trust=trust))
    model, missing = load_classifier(name, role=role, dtype=dtype, trust=trust)
    check_weights(missing, name, role)
    require_head(model.config, value_head, f"{role}: the model in {name!r}")
    if model.config.num_labels != value_head.outputs:
        raise ModelError(
            f"{role}: the model in {name!r} has {model.config.num_labels} labels, one is needed: a reward is one "
            "number. Train or export it with num_labels=1."
        )
    if stored_bias(model.config) is not None:
        add_bias(model, output_layer(model, role, value_head.outputs))
    return model


def load_adapted_scalar_model(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust = DEFAULT_TRUST, value_head: ValueHead | None = None
) -> nn.Module:
    """A folder of adapters as a peft model that trains them on. The head must be in the folder, or in their model.

    It has one label, which is the number: a `value_head` with other outputs is refused.
    """
    require_head(None, LinearHead() if value_head is None else value_head, f"{role}: the folder of adapters {name!r}")
    folder = read_adapters(name, role, trust=trust)
    load = _classifier if folder.holds_everything else load_classifier
    trusted = _for_base(folder, trust, None)
    model, missing = load(folder.base, role=role, dtype=dtype, trust=trusted, num_labels=1)
    heads = [head for head in HEAD_NAMES if f"{head}.weight" in folder.tensors]
    check_weights({key for key in missing if key.split(".")[0] not in heads}, f"{name} (on {folder.base})", role)
    if any(f"{head}.bias" in folder.tensors for head in heads) or stored_bias(model.config) is not None:
        add_bias(model, output_layer(model, role))
    fit_rows(model, folder)
    return put_on(model, folder)


def load_classifier(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust, num_labels: int | None = None
) -> tuple[PreTrainedModel, set[str]]:
    """A classification model, and the names of its tensors that the folder lacks, which are random now.

    Of a policy's adapters the trunk has them merged, and the head is lacking.
    """
    if not holds_adapters(name):
        return _classifier(name, role=role, dtype=dtype, trust=trust, num_labels=num_labels)
    if holds_head(name, role, trust):
        return load_scalar_model(name, role=role, dtype=dtype, trust=trust), set()
    policy = load_policy(name, role=role, dtype=dtype, trust=trust)
    model = scalar_from_trunk(policy, policy.config.pad_token_id, role=role)
    model.config.name_or_path = name
    return model, {key for key, _ in model.named_parameters() if key.split(".")[0] in HEAD_NAMES}


def _for_base(folder: AdapterFolder, trust: Trust, given: str | None) -> Trust:
    """What holds for the model under adapters: the user has named it, or the adapters alone do."""
    return trust if given is not None or folder.holds_everything else trust.for_unnamed()


def holds_head(name: str, role: str, trust: Trust = DEFAULT_TRUST) -> bool:
    """Whether a folder of adapters holds the trained head of a classification model."""
    return any(f"{head}.weight" in read_adapters(name, role, trust=trust).tensors for head in HEAD_NAMES)


def _classifier(
    name: str, *, role: str, dtype: torch.dtype, trust: Trust, num_labels: int | None = None
) -> tuple[PreTrainedModel, set[str]]:
    """The classification model in a folder, without adapters that lie beside it."""
    labels = {} if num_labels is None else {"num_labels": num_labels}
    allowed = code_arguments(name, role, trust)
    with reading("classification model", name, role), no_loading_report():
        own = class_to_load(AutoConfig.from_pretrained(name, **allowed))
        kind = own or AutoModelForSequenceClassification
        files = weight_arguments(name, role, trust, "AutoModelForSequenceClassification")
        model, info = kind.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **labels, **files, **(allowed if own is None else {})
        )
    take_off(model)
    # A class made here reads every token's own state; a trunk that could pool does not.
    return model, {key for key in info["missing_keys"] if own is None or ".pooler." not in key}


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Keep transformers from printing which tensors it missed: whether they may be missing is decided here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def critic_from_trunk(
    policy: PreTrainedModel, pad_token_id: int | None, value_head: ValueHead | None = None
) -> PreTrainedModel:
    """A critic with the policy's trunk and a head of zeros: its outputs are 0 everywhere."""
    critic = scalar_from_trunk(policy, pad_token_id, role="value_model")
    nn.init.zeros_(scalar_head(critic, "value_model").weight)
    return critic if value_head is None else with_value_head(critic, value_head, at_zero=True)


def with_value_head(model: PreTrainedModel, value_head: ValueHead, *, at_zero: bool) -> PreTrainedModel:
    """A critic in the place of a one-label model: its layer has the head's outputs, and its folder will say so.

    The layer is that of the model once for each output, or `at_zero`; a linear head leaves it as it is.
    """
    if not is_linear(value_head):
        exchange_head(model, "value_model", value_head.outputs, at_zero=at_zero)
        remember_head(model.config, value_head)
    return model


def scalar_from_trunk(policy: PreTrainedModel, pad_token_id: int | None, *, role: str) -> PreTrainedModel:
    """A classification model with one label, a copy of the policy's trunk, and a random head."""
    model = new_classifier(policy, pad_token_id, role=role)
    if policy.base_model is policy:
        raise ModelError(
            f"{role}: {type(policy).__name__} does not say which part of it is its trunk (base_model_prefix), so no "
            "head can be put on it. Pass a value_model, or use an advantage without a critic."
        )
    missing = model.base_model.load_state_dict(policy.base_model.state_dict(), strict=False).missing_keys
    check_weights({key for key in missing if not key.startswith("pooler.")}, type(policy).__name__, role)
    return model.to(policy.device)


def new_classifier(
    policy: PreTrainedModel, pad_token_id: int | None, *, role: str, outputs: int = 1
) -> PreTrainedModel:
    """A random classification model with so many labels, of the policy's family and widths."""
    settings = {name: value for name, value in policy.config.to_dict().items() if name not in NOT_OF_A_TRUNK}
    config = type(policy.config).from_dict({**settings, "num_labels": outputs})
    config.pad_token_id = pad_token_id
    try:
        return new_scalar_model(config, policy.dtype)
    except ValueError as error:
        raise ModelError(
            f"{role}: none can be started from the policy, whose family is {config.model_type!r}: {error}. Pass a "
            "module of your own, forward(ids, mask) to one number a token, or a model of "
            "AutoModelForSequenceClassification with num_labels=1."
        ) from error


def check_folder(name: str, role: str, files: tuple[str, ...] = MODEL_FILES) -> None:
    """A path that is no folder must not be taken for a hub name; a folder holds at least one of `files`."""
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise ModelError(
            f"{role}: the folder {name!r} does not exist. Give a folder made by save_pretrained, or a hub name."
        )
    if path.is_dir() and not any((path / file).is_file() for file in files):
        if several := sorted(str(inner.parent) for inner in path.glob("*/adapter_config.json")):
            raise ModelError(
                f"{role}: the folder {name!r} holds adapters in folders of their own: {', '.join(several)}. Give one "
                "of them."
            )
        raise ModelError(f"{role}: the folder {name!r} holds no config.json, so it is no model folder.")


def check_weights(missing: set[str], name: str, role: str) -> None:
    """Raise ModelError where tensors are missing."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{role}: {name!r} lacks {len(missing)} of the model's tensors ({shown}). They would be random, so "
            "this is refused. Give a folder in which this model was saved after training"
            + (f", {FIRST_TRY}." if role == "reward_model" else ".")
        )
