"""Which way of attending over packed rows is taken: the fastest that is there and fits."""

import torch
from transformers import PreTrainedModel

from nearstep.models.attention.interface import Segment, Segments
from nearstep.models.attention.varlen import Kernel, SegmentsOnGPU, kernel_for, kernels_there
from nearstep.models.attention_cpu import SegmentsOnCPU, loops_fit
from nearstep.models.cpu_threads import loops_there


def plan_of(segments: tuple[Segment, ...], device: torch.device) -> Segments | SegmentsOnCPU | SegmentsOnGPU:
    """How segments attend on a device."""
    if device.type == "cuda":
        return SegmentsOnGPU.of(segments, device)
    return SegmentsOnCPU(segments) if device.type == "cpu" and loops_there() else Segments(segments)


def kernel_of_model(model: PreTrainedModel, *, autocast: bool) -> Kernel:
    """How the rows of a model will attend, for the reader of a log."""
    config = model.config.get_text_config()
    known = config.to_dict()
    width = known.get("head_dim") or config.hidden_size // config.num_attention_heads
    dtype, softcap = torch.bfloat16 if autocast else model.dtype, known.get("attn_logit_softcapping")
    if model.device.type == "cuda":
        return kernel_for(kernels_there(), dtype, width=width, value_width=width, softcap=softcap)
    fit = loops_there() and loops_fit(dtype, width=width, value_width=width, softcap=softcap)
    return Kernel.LOOPS if model.device.type == "cpu" and fit else Kernel.ROWS
