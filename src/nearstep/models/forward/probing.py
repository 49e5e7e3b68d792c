"""The output of a model for two short rows, which is compared when packed attention is checked."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LENGTHS = (5, 3)


def probe_rows(model: PreTrainedModel) -> list[Tensor]:
    """Two short rows of token ids."""
    vocabulary: int = model.config.get_text_config().vocab_size
    tokens = (torch.arange(sum(LENGTHS), device=model.device) * 7 + 3) % vocabulary
    return list(tokens.split(LENGTHS))


@torch.no_grad()
def probe_alone(model: nn.Module, row: Tensor) -> Tensor:
    """First output of the model's own forward pass for one row: logits, or hidden states of a trunk."""
    was_training = model.training
    output: Tensor = model.eval()(input_ids=row[None], use_cache=False)[0][0]
    model.train(was_training)
    return output


def relative_gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    gap = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-6)
    return float(gap)


def rounding(dtype: torch.dtype) -> float:
    """A relative gap that another order of the same operations may make."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
