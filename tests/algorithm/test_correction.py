"""Corrections for an engine that is not quite the trainer: by hand, in float64, and what holds of all of them."""

import itertools
from math import exp, log, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.anchors import interpolated, share_by_age
from nearstep.algorithm.correction import Correction, Corrections, form_problem, unlimited
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs
from nearstep.config.correction import CorrectionSettings, correction_problems

# Rows of 2, 1, 0 and 3 tokens. Products 1.5, 4, –, 0.108; geometric means 1.2247, 4, –, 0.4762.
RATIOS = (2.0, 0.75, 4.0, 0.6, 0.6, 0.3)
COUNTS = torch.tensor([2, 1, 0, 3])
ROWS = ActionRows(COUNTS, torch.ones(4, dtype=torch.long))
ENGINE = torch.tensor([-3.0, -2.0, -4.0, -1.0, -1.5, -0.5], dtype=torch.float64)


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


TRAINER = ENGINE + floats(*RATIOS).log()
MEANS = (1.5**0.5, 1.5**0.5, 4.0, *[0.108 ** (1 / 3)] * 3)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Correction(high=1.9), (1.9, 0.75, 1.9, 0.6, 0.6, 0.3)),  # truncated importance sampling
        (Correction(low=0.7, high=1.9), (1.9, 0.75, 1.9, 0.7, 0.7, 0.7)),
        (Correction(action="mask", low=0.5, high=3.0), (2, 0.75, 0, 0.6, 0.6, 0)),  # IcePop
        (Correction(action="reject", low=0.5, high=3.0), (1, 1, 0, 1, 1, 0)),
        (Correction("row", high=3.0), (1.5, 1.5, 3, 0.108, 0.108, 0.108)),
        (Correction("row", "mask", high=3.0), (1.5, 1.5, 0, 0.108, 0.108, 0.108)),  # MIS, sequence mask
        (Correction("row", "mask", low=0.11), (1.5, 1.5, 4, 0, 0, 0)),
        (Correction("row_mean", low=0.5, high=3.0), (MEANS[0], MEANS[0], 3, 0.5, 0.5, 0.5)),
        (Correction("row_mean", "mask", low=0.47, high=3.0), (MEANS[0], MEANS[0], 0, *MEANS[3:])),
        (Correction("row_mean", "reject", low=0.48, high=4.1), (1, 1, 1, 0, 0, 0)),
        # k3 = r − 1 − log r: 0.3069, 0.0377, 1.6137, 0.1108, 0.1108, 0.5040; by row 0.3446, 1.6137, 0.7256
        (Correction("token", "mask", "k3", high=0.5), (2, 0.75, 0, 0.6, 0.6, 0)),
        (Correction("row", "mask", "k3", high=0.73), (1.5, 1.5, 0, 0.108, 0.108, 0.108)),
        (Correction("row", "reject", "k3", high=0.72), (1, 1, 0, 0, 0, 0)),
        (Correction("row_mean", "reject", "k3", high=0.25), (1, 1, 0, 1, 1, 1)),
        (Correction("row_mean", "reject", "k3", high=0.24), (1, 1, 0, 0, 0, 0)),
        # k2 = ½ log² r: 0.2402, 0.0414, 0.9609, 0.1305, 0.1305, 0.7248; by row 0.2816, 0.9609, 0.9857
        (Correction("token", "reject", "k2", high=0.73), (1, 1, 0, 1, 1, 1)),
        (Correction("row", "reject", "k2", high=0.97), (1, 1, 1, 0, 0, 0)),
        (Correction("row_mean", "reject", "k2", high=0.4), (1, 1, 0, 1, 1, 1)),
        # Any token of the row: the largest, and the smallest.
        (Correction("row", "reject", "largest", high=1.9), (0, 0, 0, 1, 1, 1)),
        (Correction("row", "mask", "largest", low=0.5), (1.5, 1.5, 4, 0, 0, 0)),
        (Correction("row_mean", "mask", "largest", low=0.7, high=5.0), (*MEANS[:3], 0, 0, 0)),
        (Corrections(), (1, 1, 1, 1, 1, 1)),
        # A mask over rows times the weights of tokens (seq-mask-tis), truncated.
        (
            Corrections((Correction("row_mean", "reject", low=0.5, high=5.0), Correction(high=3.0))),
            (2, 0.75, 3, 0, 0, 0),
        ),
    ],
    ids=str,
)
def test_by_hand(correction, expected):
    torch.testing.assert_close(correction.importance(TRAINER, ENGINE, ROWS), floats(*expected))


def test_what_the_hand_worked_values_rest_on():
    assert prod(RATIOS[:2]) == 1.5
    assert MEANS[3] == pytest.approx(prod(RATIOS[3:]) ** (1 / 3)) == pytest.approx(0.4762, abs=1e-4)
    assert [round(r - 1 - log(r), 4) for r in RATIOS] == [0.3069, 0.0377, 1.6137, 0.1108, 0.1108, 0.5040]
    assert [round(log(r) ** 2 / 2, 4) for r in RATIOS] == [0.2402, 0.0414, 0.9609, 0.1305, 0.1305, 0.7248]


FORMS = [
    (level, action, measure, low, high)
    for level, action, measure, low, high in itertools.product(
        ("token", "row", "row_mean"), ("truncate", "mask", "reject"), ("ratio", "k2", "k3", "largest"), (None, 0.6),
        (None, 1.7),
    )
]  # fmt: skip
MEANT = [form for form in FORMS if form_problem(*form) is None]


def test_settings_refuse_what_the_form_refuses():
    names = ("correction_level", "correction_action", "correction_measure", "correction_low", "correction_high")
    for form in FORMS:
        settings = CorrectionSettings(anchor="recomputed", **dict(zip(names, form, strict=True)))
        assert bool(list(correction_problems(settings))) == (form not in MEANT), form
    assert len(MEANT) == 36 + 24 + 16  # by ratio; by k2 and k3, not truncated and with one limit; by largest, of rows
    for form in set(FORMS) - set(MEANT):
        with pytest.raises(ValueError, match=r"^Correction: (action|measure)"):
            Correction(*form)
    with pytest.raises(ValueError, match="low = 3 is above high = 2"):
        Correction(low=3.0, high=2.0)
    assert form_problem("sequence", "mask", "ratio", None, 2.0) == "level = 'sequence' is none of token, row, row_mean"


batches = st.lists(
    st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), max_size=5), min_size=1, max_size=5
)  # fmt: skip


@given(rows=batches, form=st.sampled_from(MEANT), cut=st.integers(0, 5))
def test_weights_are_finite_from_0_on_and_do_not_depend_on_micro_batches(rows, form, cut):
    def weights(part):
        tokens = torch.tensor([pair for row in part for pair in row]).reshape(-1, 2)
        counts = torch.tensor([len(row) for row in part], dtype=torch.long)
        return Correction(*form).importance(tokens[:, 0], tokens[:, 1], ActionRows(counts, torch.zeros_like(counts)))

    whole = weights(rows)
    assert whole.dtype == torch.float32
    assert bool((whole.isfinite() & (whole >= 0)).all())
    assert torch.equal(whole, torch.cat([weights(rows[:cut]), weights(rows[cut:])]))


@pytest.mark.parametrize("form", MEANT, ids=str)
def test_where_engine_and_trainer_agree_every_weight_is_1(form):
    assert bool((Correction(*form).importance(ENGINE, ENGINE, ROWS) == 1).all())


def test_log_ratios_are_held():
    far = Correction("row", high=None).importance(ENGINE.clamp(max=-4) + 30, ENGINE.clamp(max=-4), ROWS)
    torch.testing.assert_close(far, torch.full_like(far, exp(20)))
    gone = Correction().importance(torch.full_like(ENGINE, -torch.inf), ENGINE, ROWS)
    torch.testing.assert_close(gone, torch.full_like(gone, exp(-20)))


def test_without_limits_a_rule_gives_its_own_ratio():
    rule = Corrections((Correction("row_mean", "reject", "k3", high=0.1), Correction("token", "mask", high=1.0)))
    torch.testing.assert_close(unlimited(rule).importance(TRAINER, ENGINE, ROWS), floats(*RATIOS))

    class Own:
        def importance(self, trainer, engine, rows):
            return torch.zeros_like(engine)

    torch.testing.assert_close(unlimited(Own()).importance(TRAINER, ENGINE, ROWS), floats(*RATIOS))


def test_an_anchor_lies_between_engine_and_policy_by_the_age_of_the_row():
    """Update 7: of rows sampled in it nothing moves, of the one before half the way, and so on; none is newer."""
    shares = share_by_age(torch.tensor([7, 6, 5, 3, 8]), 7)
    assert shares.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 4 / 5, 0])
    engine, now = TokenLogprobs(floats(-1, -2, -3)), TokenLogprobs(floats(-2, -1, -3.5))
    found = interpolated(engine, now, floats(0, 0.5, 0.8))
    assert found.top is None
    # As AReaL's worked example: versions 0, proximal 1, now 2.
    assert found.sampled.tolist() == pytest.approx([-1, -1.5, -3.4])


def test_top_tokens_of_an_interpolated_anchor_are_no_more_than_certain():
    draws = torch.Generator().manual_seed(0)
    engine, now = (torch.randn(5, 8, generator=draws).double().mul(3).log_softmax(-1) for _ in range(2))
    engine[0, -1] = now[0, -1] = -torch.inf  # left out of both
    found = interpolated(
        TokenLogprobs(engine[:, 0], engine), TokenLogprobs(now[:, 0], now), torch.full((5,), 0.5, dtype=torch.float64)
    )
    assert found.top is not None
    torch.testing.assert_close(found.top[:, 0], found.sampled)
    torch.testing.assert_close(found.top[1:], (engine + now)[1:] / 2)
    assert bool((found.top.exp().sum(-1) <= 1 + 1e-12).all())
    assert found.top[0, -1] == -torch.inf


@pytest.mark.parametrize("level", ["row", "token", "row_mean"])
def test_the_limits_themselves_are_inside(level):
    """Where engine and trainer agree the ratio is 1 and its k2 and k3 are 0, to the last bit."""
    for rule in (
        Correction(level, "mask", low=1.0, high=1.0),
        Correction(level, "reject", "k2", high=0.0),
        Correction(level, "reject", "k3", high=0.0),
    ):
        assert rule.importance(ENGINE, ENGINE, ROWS).tolist() == [1.0] * 6
