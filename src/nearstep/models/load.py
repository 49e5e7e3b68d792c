"""How models and tokenizers come from a folder or hub name, and what is wrong with those that cannot be used."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nearstep.errors import ModelError
from nearstep.models.roles import scalar_head

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
    """A classification model with one label and a trained head; a missing head is an error, never random."""
    check_folder(name, role)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{role}: no classification model could be read from {name!r}: {_first_line(error)}"
        ) from error
    check_weights(info["missing_keys"], name, role)
    if model.config.num_labels != 1:
        raise ModelError(
            f"{role}: the model in {name!r} has {model.config.num_labels} labels, one is needed: a reward is one "
            "number. "
            "Train or export it with num_labels=1."
        )
    return model


def critic_from_trunk(policy: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """A critic with the policy's trunk and a head of zeros: its first value is 0 everywhere."""
    settings = {name: value for name, value in policy.config.to_dict().items() if name not in ("id2label", "label2id")}
    config = type(policy.config).from_dict({**settings, "num_labels": 1})
    config.pad_token_id = pad_token_id
    try:
        critic = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    except ValueError as error:
        raise ModelError(
            f"value_model: transformers has no classification model for the family {config.model_type!r}, so no "
            "critic can be "
            "started from the policy. Pass value_model or value_model_path."
        ) from error
    critic.base_model.load_state_dict(policy.base_model.state_dict())
    nn.init.zeros_(scalar_head(critic, "value_model").weight)
    return critic.to(policy.device)


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
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"{role}: {name!r} lacks {len(missing)} of the model's tensors ({shown}). They would be random, so "
            "this is refused. "
            "Give a folder in which this model was saved after training."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
