"""Which tokenizer a model reads with: given, its own, or that of a folder."""

from pathlib import Path

from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.trust import DEFAULT_TRUST, Trust
from nearstep.models.adapter_folders import holds_adapters, read_adapters
from nearstep.models.load import MODEL_FILES, check_folder
from nearstep.models.own_code import code_arguments
from nearstep.models.roles import inner_model
from nearstep.models.weight_files import first_line

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def load_tokenizer(name: str, *, role: str = "tokenizer", trust: Trust = DEFAULT_TRUST) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; adapters without one have that of their model. Raises ModelError if there
    is none."""
    check_folder(name, role, (*TOKENIZER_FILES, *MODEL_FILES))
    if holds_adapters(name) and not any(Path(name, file).is_file() for file in TOKENIZER_FILES):
        folder = read_adapters(name, role, trust=trust)
        if not folder.holds_everything:
            return load_tokenizer(folder.base, role=role, trust=trust.for_unnamed())
    allowed = code_arguments(name, role, trust)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **allowed)
    except (OSError, ValueError) as error:
        is_here = Path(name).is_dir()
        remedy = "Save its own tokenizer there (tokenizer.save_pretrained)" if is_here else "Check name and network"
        raise ModelError(f"{role}: no tokenizer could be read from {name!r}: {first_line(error)}. {remedy}.") from error
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
    given: PreTrainedTokenizerBase | str | None,
    model: nn.Module | str,
    *,
    model_name_or_path: str | None,
    trust: Trust = DEFAULT_TRUST,
) -> PreTrainedTokenizerBase:
    """The tokenizer as given, else that of model_name_or_path, else that of the model itself.

    Raises ConfigError where there is none to be found, ModelError where one cannot be read.
    """
    if isinstance(given, str):
        return load_tokenizer(given, role="processing_class", trust=trust)
    if given is not None:
        return given
    name = model_name_or_path or (model if isinstance(model, str) else name_or_path(model))
    if not name:
        raise ConfigError("no tokenizer: pass processing_class, or set model_name_or_path")
    role = "model" if model_name_or_path is None else "model_name_or_path"
    return load_tokenizer(name, role=role, trust=trust)
