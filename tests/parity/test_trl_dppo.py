"""Divergence PPO against TRL 1.8.0: the same tokens are dropped, and every kept token gets the same gradient.

`tests/parity/record/dppo.py` made the numbers.
"""

import pytest
import torch

from nearstep.algorithm.losses import policy_loss
from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, TokenLogprobs, TopKKL, TopKTV
from tests.parity.recordings import RECORDED, read
from tests.regions import weight

REGIONS = {"binary_tv": BinaryTV, "binary_kl": BinaryKL, "topk_tv": TopKTV, "topk_kl": TopKKL}
GIVEN = read(RECORDED / "dppo.npz")
CASES = sorted(name.removesuffix("/mask") for name in GIVEN if name.endswith("/mask"))
VALID = GIVEN["mask"].bool()


def tokens(name):
    """A recorded array, only where there are tokens."""
    return GIVEN[name][VALID]


def kept_by_us(case):
    """What our region keeps."""
    kind, low, high, _ = case.split("/")
    region = REGIONS[kind](float(low), float(high))
    now = TokenLogprobs(tokens("now"), tokens("now_top"))
    return weight(region, now, TokenLogprobs(tokens("old"), tokens("old_top")), tokens("advantages"))


def test_the_recording_has_every_case():
    """Four divergences, two pairs of thresholds, two caps; and thresholds apart drop other tokens than equal ones."""
    assert len(CASES) == 4 * 2 * 2
    assert (tokens("advantages") == 0).any()


@pytest.mark.parametrize("case", CASES)
def test_masks_agree_token_for_token(case):
    kept = tokens(f"{case}/mask")
    assert kept.any()
    assert not kept.all()
    assert torch.equal(kept_by_us(case) == 1, kept)


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(case):
    """TRL's loss is −A·r·M·log π, ours has another value and the same gradient."""
    now = tokens("now").clone().requires_grad_()
    cap = float(case.rsplit("/", 1)[1])
    loss = policy_loss(now, tokens("old"), tokens("advantages"), kept_by_us(case), cap)
    (loss.sum() / len(now)).backward()
    torch.testing.assert_close(now.grad, tokens(f"{case}/gradient"), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_loss_follows_from_mask_and_ratio(case):
    """TRL's own loss value, from our mask and our ratio: gradient times log-prob."""
    now = tokens("now").clone().requires_grad_()
    cap = float(case.rsplit("/", 1)[1])
    policy_loss(now, tokens("old"), tokens("advantages"), kept_by_us(case), cap).sum().backward()
    loss = (now.grad * now.detach()).mean()
    torch.testing.assert_close(loss, GIVEN[f"{case}/loss"], atol=1e-6, rtol=1e-6)


def test_the_ratio_cap_binds():
    plain, capped = (tokens(f"binary_tv/0.15/0.15/{cap}/gradient") for cap in (20.0, 1.5))
    assert (plain != capped).any()
