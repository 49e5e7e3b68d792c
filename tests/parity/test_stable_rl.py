"""Divergence PPO against its authors' formulas: every mode drops the same tokens and gives the others one gradient.

`tests/parity/record/stable_rl.py` made the numbers. In every mode the loss weighs a token by π/μ; where the mask looks
at log-probs computed anew, that is our ratio to these times the importance weight of the anchor.
"""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from nearstep.algorithm.losses import policy_loss, probability_ratio
from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, Clip, TokenLogprobs, TopKKL, TopKTV, Unbounded
from tests.parity.record import stable_rl
from tests.parity.recordings import RECORDED, read
from tests.regions import weight

GIVEN = read(RECORDED / "stable_rl.npz")
CASES = sorted(name.removesuffix("/kept") for name in GIVEN if name.endswith("/kept"))
VALID = GIVEN["mask"]
TRL = read(RECORDED / "dppo.npz")


@dataclass(frozen=True)
class RelaxedClip:
    """The ablations of 2602.04879: the ratio is bounded only for tokens that were common enough at rollout."""

    low: float = 0.2
    high: float = 0.28
    common_rising: float = 0.0
    common_falling: float = 0.0
    top_k: int = 0

    def weight(self, now, old, advantages, rows):
        ratio, was = probability_ratio(now.sampled, old.sampled), old.sampled.exp()
        too_high = (advantages > 0) & (ratio > 1 + self.high) & (was >= self.common_rising)
        too_low = (advantages < 0) & (ratio < 1 - self.low) & (was >= self.common_falling)
        return 1.0 - (too_high | too_low).float()


REGIONS = {
    "dppo_binary_tv": BinaryTV,
    "dppo_binary_kl": BinaryKL,
    "dppo_topk_tv": TopKTV,
    "dppo_topk_kl": TopKKL,
    "ppo": Clip,
    "ppo_ablation_positive": lambda low, high: RelaxedClip(low=low, common_rising=high),
    "ppo_ablation_negative": lambda low, high: RelaxedClip(high=high, common_falling=low),
    "ppo_ablation_both": lambda low, high: RelaxedClip(common_rising=high, common_falling=low),
    "pg_no_mask": lambda low, high: Unbounded(),
}


def tokens(name):
    """A recorded array, only where there are tokens."""
    return GIVEN[name][VALID]


@dataclass(frozen=True)
class Played:
    """A case in our words."""

    kept: torch.Tensor
    gradient: torch.Tensor  # of the mean loss, by the log-prob of every token


def play(case: str) -> Played:
    mode, low, high, cap = case.split("/")
    recompute = mode.endswith("_recompute")
    region = REGIONS[mode.removesuffix("_recompute")](float(low), float(high))
    now = tokens("now").clone().requires_grad_()
    old = TokenLogprobs(tokens("recomputed" if recompute else "rollout"), tokens("rollout_top"))
    kept = weight(region, TokenLogprobs(now.detach(), tokens("now_top")), old, tokens("advantages"))
    importance = probability_ratio(old.sampled, tokens("rollout"))
    loss = importance * policy_loss(now, old.sampled, tokens("advantages"), kept, float(cap))
    loss.mean().backward()
    return Played(kept == 1, now.grad)


def test_the_recording_has_every_mode_of_the_authors():
    assert {case.split("/")[0] for case in CASES} == set(stable_rl.THRESHOLDS)
    assert len(CASES) == 23 * 3


def test_the_recording_has_tokens_of_every_kind():
    """Advantages of both signs and none; probabilities that jump from almost 0 to almost 1 and back."""
    advantages, moved = tokens("advantages"), tokens("now") - tokens("rollout")
    assert all(kind.any() for kind in (advantages > 0, advantages < 0, advantages == 0))
    assert moved.max() > 13
    assert moved.min() < -13


@pytest.mark.parametrize("case", CASES)
def test_masks_agree_token_for_token(case):
    """At A = 0 the authors use the rule for negative ones; `Clip` keeps such tokens, and their loss is 0 anyway."""
    ours, theirs = play(case).kept, tokens(f"{case}/kept")
    judged = torch.ones_like(theirs) if case.startswith("dppo") else tokens("advantages") != 0
    assert torch.equal(ours[judged], theirs[judged])
    if not case.startswith("pg_no_mask"):
        assert 0.05 < (~theirs[judged]).float().mean() < 0.9, "a mask that drops nothing, or all, proves nothing"


def comparable(case: str) -> bool:
    """They cap π/μ; with an anchor computed anew we cap its two factors apart, so only uncapped weights are equal."""
    mode, *_, cap = case.split("/")
    return not mode.endswith("_recompute") or cap == "inf"


@pytest.mark.parametrize("case", [case for case in CASES if comparable(case)])
def test_gradients_and_losses_agree(case):
    """Theirs is −A·r·M·log π; ours has another value and the same gradient, from which their value follows."""
    ours, theirs = play(case).gradient, tokens(f"{case}/gradient")
    torch.testing.assert_close(ours, theirs, atol=1e-6 * float(theirs.abs().max()), rtol=1e-6)
    loss = (ours * tokens("now")).sum()
    scale = float((theirs * tokens("now")).abs().sum())
    torch.testing.assert_close(loss, GIVEN[f"{case}/loss"], atol=1e-6 * scale, rtol=0)


def test_the_cap_of_the_ratio_binds():
    free, capped = (tokens(f"pg_no_mask/0.0/0.0/{cap}/gradient") for cap in ("inf", "1.5"))
    assert (free != capped).any()


def test_the_recording_is_made_again_by_its_script():
    """The formulas as they stand, not as they stood."""
    drawn = stable_rl.draw()
    for field in fields(drawn):
        np.testing.assert_allclose(vars(drawn)[field.name], GIVEN[field.name].numpy(), rtol=1e-6)
    for mode, low, high, cap in stable_rl.cases():
        kept = GIVEN[f"{mode}/{low}/{high}/{cap}/kept"].numpy()
        assert np.array_equal(stable_rl.outcome(mode, drawn, low, high, cap).kept, kept)


def trl_tokens() -> stable_rl.Tokens:
    """What TRL's own masks were recorded on."""
    found = {name: array.numpy() for name, array in TRL.items() if "/" not in name}
    return stable_rl.Tokens(
        now=found["now"], rollout=found["old"], recomputed=found["old"], now_top=found["now_top"],
        rollout_top=found["old_top"], advantages=found["advantages"], mask=found["mask"].astype(bool),
    )  # fmt: skip


@pytest.mark.parametrize("case", sorted(name.removesuffix("/mask") for name in TRL if name.endswith("/mask")))
def test_trl_drops_what_the_authors_drop(case):
    kind, low, high, _ = case.split("/")
    given = trl_tokens()
    kept = given.mask & ~stable_rl.dropped(f"dppo_{kind}", given, float(low), float(high))
    assert np.array_equal(kept, TRL[f"{case}/mask"].numpy() & given.mask)


def verl_keeps(kind: str, t: stable_rl.Tokens, low: float, high: float):
    """The rules of verl's dppo_tv and dppo_kl (verl at 1dda039, core_algos.py), which say what is kept, not dropped."""
    p, q = np.exp(t.now), np.exp(t.rollout)
    if kind == "tv":
        rising, falling = p - q <= high, p - q >= -low
    else:
        kl = stable_rl.binary_kl(t.rollout, t.now)
        rising, falling = (kl <= high) | (p <= q), (kl <= low) | (p >= q)
    return np.where(t.advantages > 0, rising, falling)


@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_verl_keeps_what_the_authors_keep(kind):
    drawn = stable_rl.draw()
    for low, high in stable_rl.THRESHOLDS[f"dppo_binary_{kind}"]:
        theirs = stable_rl.dropped(f"dppo_binary_{kind}", drawn, low, high)
        assert np.array_equal(verl_keeps(kind, drawn, low, high), ~theirs)
