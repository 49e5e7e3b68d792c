"""Which examples are kept from training for the report: those of some prompts, so that no prompt is on both sides."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch

from nearstep.common.random_streams import stream

FEW_PROMPTS = 20  # with fewer, a held-out part would be too small to measure on

HeldOutT = TypeVar("HeldOutT")


def hold_out(
    examples: Sequence[HeldOutT], prompts: Sequence[str], share: float, *, seed: int
) -> tuple[list[HeldOutT], list[HeldOutT]]:
    """Examples to train on and examples to report on, at least one of the former; the latter are about `share` of all.

    Where there are few different prompts, examples are drawn one by one.
    """
    if share == 0:
        return list(examples), []
    keys = list(prompts) if len(set(prompts)) >= FEW_PROMPTS else [str(number) for number in range(len(examples))]
    counts = Counter(keys)
    different = list(counts)
    order = torch.randperm(len(different), generator=stream(seed, "held out")).tolist()
    wanted, taken, kept_out = share * len(examples), 0, set()
    for number in order[:-1]:
        if taken >= wanted:
            break
        kept_out.add(different[number])
        taken += counts[different[number]]
    pairs = list(zip(examples, keys, strict=True))
    return [each for each, key in pairs if key not in kept_out], [each for each, key in pairs if key in kept_out]
