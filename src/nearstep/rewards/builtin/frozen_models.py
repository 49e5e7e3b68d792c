"""How the models behind built-in rewards are loaded, and how they read texts: whole, in batches, without gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError
from nearstep.models.limits import Limits
from nearstep.models.load import check_folder, check_weights, load_tokenizer

# A window of fewer tokens would hardly leave room beside the special tokens.
FEWEST_TOKENS = 8


@dataclass(frozen=True)
class Window:
    """A piece of a text that a model can read at once: its row, what the model reads, and which tokens are special."""

    row: int
    inputs: dict[str, list[int]]
    special: list[int]


def read_config(role: str, name: str) -> PreTrainedConfig:
    """The configuration in a folder or of a hub name, without weights. Raises ModelError if there is none."""
    check_folder(name, role)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"{role}: no model configuration could be read from {name!r}: {error}") from error


def load_frozen(role: str, auto_class: Any, name: str, device: str) -> PreTrainedModel:
    """A model for reading only: on its device, in the type of its weights there, in float32 on a CPU.

    Raises ModelError if it cannot be read or lacks weights; a pooling layer, which is not used, may be missing.
    """
    check_folder(name, role)
    place = device_of(device)
    dtype = torch.float32 if place.type == "cpu" else "auto"
    try:
        model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{role}: no {auto_class.__name__} could be read from {name!r}: {error}") from error
    check_weights({key for key in info["missing_keys"] if not key.startswith("pooler.")}, name, role)
    frozen: PreTrainedModel = model.to(place).eval().requires_grad_(False)
    return frozen


def load_reader(role: str, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, padding on the right. Raises ModelError if there is none."""
    tokenizer = load_tokenizer(name, role=role)
    tokenizer.padding_side = "right"
    return tokenizer


def device_of(device: str) -> torch.device:
    """The device that a parameter names; auto is the GPU of this process if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def windows(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    window_tokens: int,
) -> list[Window]:
    """Texts, or pairs of texts, in pieces of at most `window_tokens` tokens and what the model reads.

    Nothing is cut away: a long text gives several windows. Of a pair the first text is divided, the second is whole
    in each. Raises ModelError where the second leaves no room.
    """
    positions = Limits.of(config).positions or window_tokens
    limit = min(window_tokens, tokenizer.model_max_length, positions)
    if pairs is not None:
        widest = max(len(ids) for ids in tokenizer(list(pairs), add_special_tokens=False)["input_ids"])
        if widest + FEWEST_TOKENS > limit:
            raise ModelError(
                f"a text of {widest} tokens is to be compared, but the model reads {limit} together with the other: "
                "take a model that reads more, or shorter responses."
            )
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        max_length=limit,
        return_overflowing_tokens=True,
        truncation=True if pairs is None else "only_first",
        return_special_tokens_mask=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    pieces = zip(encoded["overflow_to_sample_mapping"], encoded["special_tokens_mask"], strict=True)
    return [
        Window(row, {name: encoded[name][index] for name in names}, special)
        for index, (row, special) in enumerate(pieces)
    ]


def batches(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Window], size: int, device: torch.device
) -> Iterator[tuple[list[Window], dict[str, Tensor]]]:
    """Windows of like length together, padded under a mask; one at a time where the tokenizer has no padding token."""
    ordered = sorted(pieces, key=lambda window: len(window.inputs["input_ids"]))
    step = size if tokenizer.pad_token_id is not None else 1
    for start in range(0, len(ordered), step):
        together = ordered[start : start + step]
        inputs = {name: [window.inputs[name] for window in together] for name in together[0].inputs}
        padded = tokenizer.pad(inputs, return_tensors="pt", padding=step > 1)
        yield together, dict(padded.to(device))
