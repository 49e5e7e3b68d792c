"""How a model folder is written: beside its place and then moved into it, so that it is never half a model."""

import shutil
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


def write_model(
    target: Path,
    model: nn.Module,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write a transformers or peft model, its tokenizer and its card to `target`, in place of what was there.

    `weights` is the state dict to write, None for the model's own.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished, state_dict=weights)  # type: ignore[operator]
    tokenizer.save_pretrained(unfinished)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
