"""Trust regions asked about tokens without any word on rows: all of them are one."""

import torch

from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs


def one_row(advantages):
    return ActionRows(torch.tensor([len(advantages)]), torch.tensor([0]))


def weight(region, now: TokenLogprobs, old: TokenLogprobs, advantages):
    return region.weight(now, old, advantages, one_row(advantages))
