"""How a model folder is written: beside its place and then moved into it, so that it is never half a model."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nearstep.common.whole_folder import whole_folder


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that tells plain transformers where a row's padding begins; None where it is EOS, which ends the row."""
    pad: int | None = tokenizer.pad_token_id
    return None if pad == tokenizer.eos_token_id else pad


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
    with whole_folder(target) as unfinished:
        model.save_pretrained(unfinished, state_dict=weights)  # type: ignore[operator]
        tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
