"""How models and tokenizers come from a folder or hub name, and what is wrong with those that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.adapters import merge_adapters_from, saved_tensor_names
from nearstep.models.forward.probing import own_vocabulary
from nearstep.models.head_bias import add_bias, stored_bias
from nearstep.models.roles import HEAD_NAMES, decoder_config, inner_model, output_layer, scalar_head

MODEL_FILES = ("config.json", "adapter_config.json")


def load_tokenizer(name: str, *, role: str = "tokenizer", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name. Raises ModelError if there is none."""
    check_folder(name, role, ("tokenizer_config.json", "tokenizer.json", *MODEL_FILES))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{role}: no tokenizer could be read from {name!r}: {_first_line(error)}. Save its own tokenizer there "
            "(tokenizer.save_pretrained)."
        ) from error
    # For some families transformers makes an empty tokenizer where the files are missing.
    if not tokenizer.encode("text", add_special_tokens=False):
        raise ModelError(
            f"{role}: {name!r} holds no tokenizer, only a configuration. Save its own tokenizer there "
            "(tokenizer.save_pretrained)."
        )
    return tokenizer


def name_or_path(model: nn.Module) -> str | None:
    """Where a model came from; None for one that was made in memory."""
    inner = inner_model(model)
    return inner.config.name_or_path or None if isinstance(inner, PreTrainedModel) else None


def choose_tokenizer(
    given: PreTrainedTokenizerBase | None,
    model: nn.Module | str,
    *,
    model_name_or_path: str | None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer as given, else that of model_name_or_path, else that of the model itself.

    Raises ConfigError where there is none to be found, ModelError where one cannot be read.
    """
    if given is not None:
        return given
    name = model_name_or_path or (model if isinstance(model, str) else name_or_path(model))
    if not name:
        raise ConfigError("no tokenizer: pass processing_class, or set model_name_or_path")
    role = "model" if model_name_or_path is None else "model_name_or_path"
    return load_tokenizer(name, role=role, trust_remote_code=trust_remote_code)


def family_of(model: nn.Module | str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's own text configuration, read without loading weights.

    Of a module that is no transformers model it holds the number of its logits and nothing else. Raises ModelError if
    there is none, and for an encoder-decoder model.
    """
    if isinstance(model, nn.Module):
        inner = inner_model(model)
        if not isinstance(inner, PreTrainedModel):
            return PreTrainedConfig(vocab_size=own_vocabulary(inner, "model"))
        return decoder_config(inner.config, "model").get_text_config()
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"model: no model configuration could be read from {model!r}: {error}") from error
    return decoder_config(config, "model").get_text_config()


def load_policy(name: str, *, role: str, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model. Raises ModelError naming the role if it cannot be read or has missing weights."""
    check_folder(name, role)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{role}: no causal language model could be read from {name!r}: {_first_line(error)}"
        ) from error
    check_weights(info["missing_keys"], name, role)
    return model


def load_scalar_model(name: str, *, role: str, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A classification model with one label and a trained head; a missing head is an error, never random.

    A folder of adapters gives the model that they were trained on, with the adapters merged.
    """
    check_folder(name, role)
    if _holds_adapters(name):
        return _load_adapted(name, role=role, dtype=dtype, trust_remote_code=trust_remote_code)
    model, missing = load_classifier(name, role=role, dtype=dtype, trust_remote_code=trust_remote_code)
    check_weights(missing, name, role)
    if model.config.num_labels != 1:
        raise ModelError(
            f"{role}: the model in {name!r} has {model.config.num_labels} labels, one is needed: a reward is one "
            "number. Train or export it with num_labels=1."
        )
    if stored_bias(model.config) is not None:
        add_bias(model, output_layer(model, role))
    return model


def load_classifier(
    name: str, *, role: str, dtype: torch.dtype, trust_remote_code: bool, num_labels: int | None = None
) -> tuple[PreTrainedModel, set[str]]:
    """A classification model, and the names of its tensors that the folder lacks, which are random now."""
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        with _no_loading_report():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **labels
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{role}: no classification model could be read from {name!r}: {_first_line(error)}"
        ) from error
    return model, set(info["missing_keys"])


@contextmanager
def _no_loading_report() -> Iterator[None]:
    """Keep transformers from printing which tensors it missed: whether they may be missing is decided here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _holds_adapters(name: str) -> bool:
    return Path(name, "adapter_config.json").is_file() and not Path(name, "config.json").is_file()


def _load_adapted(name: str, *, role: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model under a folder of adapters, with these merged. The head must be in the folder, or in the model."""
    tensors, base = saved_tensor_names(name, role)
    model, missing = load_classifier(base, role=role, dtype=dtype, trust_remote_code=trust_remote_code, num_labels=1)
    heads = [head for head in HEAD_NAMES if f"base_model.model.{head}.weight" in tensors]
    check_weights({key for key in missing if key.split(".")[0] not in heads}, f"{name} (on {base})", role)
    if any(f"base_model.model.{head}.bias" in tensors for head in heads):
        add_bias(model, output_layer(model, role))
    merged = merge_adapters_from(name, model)
    merged.config.name_or_path = name  # its tokenizer lies beside the adapters
    return merged


def critic_from_trunk(policy: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """A critic with the policy's trunk and a head of zeros: its first value is 0 everywhere."""
    critic = scalar_from_trunk(policy, pad_token_id, role="value_model")
    nn.init.zeros_(scalar_head(critic, "value_model").weight)
    return critic


def scalar_from_trunk(policy: PreTrainedModel, pad_token_id: int | None, *, role: str) -> PreTrainedModel:
    """A classification model with one label, a copy of the policy's trunk, and a random head."""
    model = new_classifier(policy, pad_token_id, role=role)
    missing = model.base_model.load_state_dict(policy.base_model.state_dict(), strict=False).missing_keys
    check_weights({key for key in missing if not key.startswith("pooler.")}, type(policy).__name__, role)
    return model.to(policy.device)


def new_classifier(policy: PreTrainedModel, pad_token_id: int | None, *, role: str) -> PreTrainedModel:
    """A random classification model with one label, of the policy's family and widths."""
    settings = {name: value for name, value in policy.config.to_dict().items() if name not in ("id2label", "label2id")}
    config = type(policy.config).from_dict({**settings, "num_labels": 1})
    config.pad_token_id = pad_token_id
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    except ValueError as error:
        raise ModelError(
            f"{role}: transformers has no classification model for the family {config.model_type!r}, so none can be "
            "started from the policy. Pass a model of AutoModelForSequenceClassification with num_labels=1."
        ) from error
    return model


def check_folder(name: str, role: str, files: tuple[str, ...] = MODEL_FILES) -> None:
    """A path that is no folder must not be taken for a hub name; a folder holds at least one of `files`."""
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise ModelError(
            f"{role}: the folder {name!r} does not exist. Give a folder made by save_pretrained, or a hub name."
        )
    if path.is_dir() and not any((path / file).is_file() for file in files):
        raise ModelError(f"{role}: the folder {name!r} holds no config.json, so it is no model folder.")


def check_weights(missing: set[str], name: str, role: str) -> None:
    """Raise ModelError where tensors are missing."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{role}: {name!r} lacks {len(missing)} of the model's tensors ({shown}). They would be random, so "
            "this is refused. Give a folder in which this model was saved after training."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300].rstrip(".")
