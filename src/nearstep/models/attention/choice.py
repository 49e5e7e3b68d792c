"""Which way of attending over packed rows is taken: the fastest that is there and fits."""

import torch
from transformers import PreTrainedModel

from nearstep.models.attention.interface import Segment, Segments
from nearstep.models.attention.varlen import Kernel, SegmentsOnGPU, kernel_for, kernels_there


def plan_of(segments: tuple[Segment, ...], device: torch.device) -> Segments | SegmentsOnGPU:
    """How segments attend on a device."""
    return SegmentsOnGPU.of(segments, device) if device.type == "cuda" else Segments(segments)


def kernel_of_model(model: PreTrainedModel, *, autocast: bool) -> Kernel:
    """How the rows of a model will attend, for the reader of a log."""
    if model.device.type != "cuda":
        return Kernel.ROWS
    config = model.config.get_text_config()
    known = config.to_dict()
    width = known.get("head_dim") or config.hidden_size // config.num_attention_heads
    dtype, softcap = torch.bfloat16 if autocast else model.dtype, known.get("attn_logit_softcapping")
    return kernel_for(kernels_there(), dtype, width=width, value_width=width, softcap=softcap)
