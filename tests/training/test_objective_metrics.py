"""Every metric of a micro-batch, worked out by hand from four tokens."""

from math import log
from statistics import pvariance

import pytest
import torch

from nearstep.algorithm.aggregation import TokenMean
from nearstep.algorithm.trust_regions import Clip, Unbounded
from nearstep.algorithm.value_heads import LinearHead
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import StateOutputs
from nearstep.training.objectives import PolicyTerms, policy_objective, value_objective
from nearstep.types import Experience, Rollout

OLD = (0.4, 0.4, 0.2, 0.5)  # probabilities of the sampled tokens at rollout
NOW = (0.6, 0.2, 0.3, 0.5)  # ratios 3/2, 1/2, 3/2, 1
ADVANTAGES = (1.0, -2.0, -1.0, 3.0)


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def experience(**changes) -> Experience:
    """Two rows of two actions each, behind prompts of one token; the first ended itself."""
    rollout = Rollout(
        tokens=torch.tensor([9, 1, 2, 9, 3, 4]),
        is_action=torch.tensor([False, True, True, False, True, True]),
        row_lengths=torch.tensor([3, 3]),
        logprobs=floats(*OLD).log(),
        finished=torch.tensor([True, False]),
        policy_version=torch.tensor([1, 1]),
    )
    nothing, rows = floats(0, 0, 0, 0), floats(0, 0)
    given = {
        "rollout": rollout, "prompt_numbers": torch.tensor([0, 1]),
        "sample_numbers": torch.tensor([0, 0]), "scores": rows, "old_logprobs": floats(*OLD).log(),
        "old_top": None, "importance": floats(1, 1, 1, 2), "ref_logprobs": None, "values": nothing, "rewards": nothing,
        "raw_advantages": nothing, "advantages": floats(*ADVANTAGES), "returns": nothing, "final_values": rows,
        "final_returns": rows, "train_final": torch.tensor([False, False]), "trained": torch.tensor([True, True]),
        "kl_coef": 0.0,
    }  # fmt: skip
    return Experience(**{**given, **changes})


def policy_metrics(region, ratio_limit=None, *, first=True):
    terms = PolicyTerms(region, ratio_limit, "token", TokenMean(), None, 0.0)
    now = ActionLogprobs(floats(*NOW).log(), floats(0.1, 0.2, 0.3, 0.4))
    loss, metrics = policy_objective(experience(), now, terms, first=first)
    return loss.item(), metrics.numbers()


def test_metrics_under_a_clip():
    # Band [0.8, 1.2]. Token 0: A > 0 above the band, out. 1: A < 0 below it, out. 2: A < 0 above it, goes back, in.
    loss, shown = policy_metrics(Clip(0.2, 0.2))
    assert shown.pop("policy/mismatch_far") in (0, 1 / 4)  # a ratio of ½, the bound, and its last bit
    surprise = [-log(chance) - entropy for chance, entropy in zip(OLD, (0.1, 0.2, 0.3, 0.4), strict=True)]
    # −min(A·ρ, A·clip ρ): −1.2, 2·0.8, 1.5, −3 with importance 2.
    assert loss == pytest.approx(-1.5 + 2 * 0.5 + 1.5 - 6)  # the masked loss keeps its value, and gives no gradient
    assert shown == pytest.approx({
        "loss/policy_avg": (-1.2 + 1.6 + 1.5 - 6) / 4,
        "loss/policy_abs": (1.5 + 1.6 + 1.5 + 6) / 4,  # the larger of |A·ρ| and |A·clip ρ|
        "policy/approxkl_avg": (log(1.5) ** 2 + log(0.5) ** 2 + log(1.5) ** 2) / 2 / 4,
        "policy/clipfrac_avg": 2 / 4,
        "policy/region_weight": 2 / 4,
        "policy/masked_positive": 1 / 2,
        "policy/masked_negative": 1 / 2,
        "policy/prob_diff_mean": (0.2 + 0.2 + 0.1) / 4,
        "policy/prob_diff_max": 0.2,
        "policy/entropy_avg": 0.25,
        "val/ratio": 4.5 / 4,
        "val/ratio_clamped": (1.2 + 0.8 + 1.2 + 1) / 4,
        "val/ratio_var": (2.25 + 0.25 + 2.25 + 1) / 4 - 1.125**2,
        "val/effective_sample_size": 4.5**2 / (4 * (2.25 + 0.25 + 2.25 + 1)),
        "val/ratio_max_gap_first": 0.5,
        # −log μ − H: by how much sampled tokens are less likely than the entropy has it.
        "policy/surprise_gap": sum(surprise) / 4,
        "policy/surprise_error": (pvariance(surprise) / 4) ** 0.5,
        # k3 of the anchor against now: ρ − 1 − log ρ.
        "policy/mismatch_kl": (2 * (0.5 - log(1.5)) + (-0.5 - log(0.5))) / 4,
        "policy/mismatch_kl_worst": ((0.5 - log(1.5)) + (-0.5 - log(0.5))) / 2,  # of the first row
        "policy/mismatch_ess": 4.5**2 / (4 * (2.25 + 0.25 + 2.25 + 1)),
        "policy/importance_avg": 4.5 / 4,
        "policy/importance_max": 1.5,
    })  # fmt: skip


def test_metrics_without_a_region_of_a_capped_ratio():
    _, shown = policy_metrics(Unbounded(), ratio_limit=1.25, first=False)
    assert shown["loss/policy_avg"] == pytest.approx((-1.25 + 2 * 0.5 + 1.25 - 6) / 4)
    assert shown["loss/policy_abs"] == pytest.approx((1.25 + 1 + 1.25 + 6) / 4)
    assert shown["val/ratio_clamped"] == pytest.approx((1.25 + 0.5 + 1.25 + 1) / 4)
    assert shown["policy/clipfrac_avg"] == shown["policy/masked_negative"] == 0
    assert "val/ratio_max_gap_first" not in shown


def test_metrics_of_the_critic():
    # Values moved by 0.5 from 0 with a range of 0.2. Against a return of 1 the clipped value is the worse one: bound.
    # The state after the first row's stop token is trained too: 0.1 against 0.4, inside the range.
    given = experience(
        returns=floats(1, 0, 1, 0), final_returns=floats(0.4, 9), train_final=torch.tensor([True, False])
    )
    loss, metrics = value_objective(
        given, StateOutputs(floats(0.5, 0, -0.5, 0.1)[:, None], floats(0.1, 7)[:, None]), LinearHead(0.2)
    )
    each = [max(0.5**2, 0.8**2), 0, max(1.5**2, 1.2**2), 0.1**2, 0.3**2]
    assert loss.item() == pytest.approx(sum(each) / 2)
    assert metrics.numbers() == pytest.approx({"loss/value_avg": sum(each) / 2 / 5, "val/clipfrac_avg": 1 / 5})
