"""How a model folder is written: beside its place and then moved into it, so that it is never half a model."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.whole_folder import whole_folder
from nearstep.models.roles import inner_model


def write_model(
    target: Path,
    model: nn.Module,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write a model, its tokenizer and its card to `target`, in place of what was there; see `save_weights`."""
    with whole_folder(target) as unfinished:
        save_weights(unfinished, model, weights)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")


def save_weights(folder: Path, model: nn.Module, weights: dict[str, Tensor] | None) -> None:
    """Write a transformers or peft model; `weights` is the state dict to write, None for the model's own.

    Of a module of the user's own the state dict is written, as `weights.pt`, for `torch.load` and `load_state_dict`.
    """
    if isinstance(inner_model(model), PreTrainedModel):
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    else:
        torch.save(model.state_dict() if weights is None else weights, folder / "weights.pt")
