"""How the models behind built-in rewards are loaded, and how they read texts: whole, in batches, without gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError
from nearstep.common.trust import NONE, Trust
from nearstep.models.limits import Limits
from nearstep.models.load import check_folder, check_weights
from nearstep.models.tokenizers import load_tokenizer
from nearstep.models.weight_files import reading, weight_arguments

# A window of fewer tokens would hardly leave room beside the special tokens.
FEWEST_TOKENS = 8
NO_CODE = Trust(code=(NONE,))  # no setting reaches these models


@dataclass(frozen=True)
class Window:
    """A piece of a text that a model can read at once: its row, what the model reads, and which tokens are special."""

    row: int
    inputs: dict[str, list[int]]
    special: list[int]


@dataclass(frozen=True)
class FrozenModel:
    """A model of transformers by its folder or hub name, for reading only; each part is loaded when first asked for."""

    role: str
    auto_class: Any
    name: str
    device: str

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration, read without weights. Raises ModelError if there is none."""
        check_folder(self.name, self.role)
        with reading("model configuration", self.name, self.role):
            return AutoConfig.from_pretrained(self.name, trust_remote_code=False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own, padding on the right. Raises ModelError if there is none."""
        tokenizer = load_tokenizer(self.name, role=self.role, trust=NO_CODE)
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on its device, in the type of its weights there, in float32 on a CPU.

        Raises ModelError if it cannot be read or lacks weights; a pooling layer, which is not used, may be missing.
        """
        check_folder(self.name, self.role)
        place = device_of(self.device)
        dtype = torch.float32 if place.type == "cpu" else "auto"
        kind = self.auto_class.__name__
        files = weight_arguments(self.name, self.role, NO_CODE, kind)
        with reading(kind, self.name, self.role):
            model, info = self.auto_class.from_pretrained(
                self.name, dtype=dtype, output_loading_info=True, trust_remote_code=False, **files
            )
        check_weights({key for key in info["missing_keys"] if not key.startswith("pooler.")}, self.name, self.role)
        frozen: PreTrainedModel = model.to(place).eval().requires_grad_(False)
        return frozen

    def windows(
        self, texts: Sequence[str], pairs: Sequence[str] | None, window_tokens: int, batch_size: int
    ) -> Iterator[tuple[list[Window], dict[str, Tensor]]]:
        """Texts, or pairs of texts, in pieces of at most `window_tokens` tokens, those of like length read together.

        Nothing is cut away: a long text gives several windows. Of a pair the first text is divided, the second is whole
        in each. What the model reads is padded under a mask, and one at a time where the tokenizer has no padding
        token. Raises ModelError where the second text leaves no room.
        """
        tokenizer = self.tokenizer
        positions = Limits.of(self.config).positions or window_tokens
        limit = min(window_tokens, tokenizer.model_max_length, positions)
        if pairs is not None:
            widest = max(len(ids) for ids in tokenizer(list(pairs), add_special_tokens=False)["input_ids"])
            if widest + FEWEST_TOKENS > limit:
                raise ModelError(
                    f"a text of {widest} tokens is to be compared, but the model reads {limit} together with the "
                    "other: take a model that reads more, or shorter responses."
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
        found = [
            Window(row, {name: encoded[name][index] for name in names}, encoded["special_tokens_mask"][index])
            for index, row in enumerate(encoded["overflow_to_sample_mapping"])
        ]
        found.sort(key=lambda window: len(window.inputs["input_ids"]))
        step = batch_size if tokenizer.pad_token_id is not None else 1
        for start in range(0, len(found), step):
            together = found[start : start + step]
            inputs = {name: [window.inputs[name] for window in together] for name in names}
            padded = tokenizer.pad(inputs, return_tensors="pt", padding=step > 1)
            yield together, dict(padded.to(self.model.device))


def device_of(device: str) -> torch.device:
    """The device that a parameter names; auto is the GPU of this process if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
