"""Sums and counts become the right numbers; the page of meanings is complete and current."""

from math import inf, isnan, nan, sqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.metrics import (
    Correlation,
    EffectiveSampleSize,
    ExplainedVariance,
    Max,
    Mean,
    Metrics,
    StandardError,
    Std,
    Variance,
)
from nearstep.reports.metrics import HEADINGS, MEANINGS, document, meaning

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shown(**metrics) -> dict[str, float]:
    return Metrics({name.replace("__", "/"): metric for name, metric in metrics.items()}).numbers()


def test_mean_is_sum_over_count_also_when_merged():
    first, second = Mean.of(floats(1.0, 2.0, 3.0)), Mean.of(floats(10.0))
    assert shown(loss__policy_avg=first + second) == {"loss/policy_avg": 4.0}  # not (2 + 10) / 2


def test_max_is_the_larger_of_both():
    merged = Max.of(floats(3.0)) + Max.of(floats(-1.0, 7.0))
    assert shown(response__length_max=merged) == {"response/length_max": 7.0}


def test_what_was_never_counted_is_absent():
    empty = floats()
    assert shown(a=Mean.of(empty), b=Max.of(empty), c=Variance.of(empty), d=Std.of(empty)) == {}


def test_nan_is_shown_not_hidden():
    broken = floats(nan, 1.0)
    result = shown(mean=Mean.of(broken), variance=Variance.of(broken), std=Std.of(broken), largest=Max.of(broken))
    assert sorted(result) == ["largest", "mean", "std", "variance"]
    assert all(isnan(number) for number in result.values())


def test_an_infinite_maximum_is_shown():
    assert shown(largest=Max.of(floats(inf))) == {"largest": inf}


def test_ratio_var_is_the_variance_over_tokens_not_of_means_d13():
    # Two micro-batches with ratios (1, 3) and (1, 1, 1, 1, 1, 5): mean 14/8, mean square 40/8.
    ratios = Variance.of(floats(1.0, 3.0)) + Variance.of(floats(1.0, 1.0, 1.0, 1.0, 1.0, 5.0))
    assert shown(val__ratio_var=ratios)["val/ratio_var"] == pytest.approx(5 - 1.75**2)  # 1.9375


def test_num_eos_tokens_is_a_share_of_all_rows_d13():
    # Three of four rows finished on one process, none of two on the other.
    share = Mean.of(floats(1.0, 1.0, 0.0, 1.0)) + Mean.of(floats(0.0, 0.0))
    assert shown(val__num_eos_tokens=share) == {"val/num_eos_tokens": 0.5}


def test_a_standard_deviation_is_the_root_of_the_variance():
    assert shown(std=Std.of(floats(2.0, 6.0)), variance=Variance.of(floats(2.0, 6.0))) == {"std": 2.0, "variance": 4.0}


def test_standard_error_effective_sample_and_correlation_by_hand():
    # 2, 6: variance 4, so √(4 / 2). Weights 1, 3: 4² / (2 · 10).
    assert shown(error=StandardError.of(floats(2.0, 6.0))) == {"error": pytest.approx(2**0.5)}
    assert shown(left=EffectiveSampleSize.of(floats(1.0, 3.0))) == {"left": pytest.approx(0.8)}
    assert shown(left=EffectiveSampleSize.of(floats(7.0, 7.0, 7.0))) == {"left": pytest.approx(1.0)}
    # x = 1, 2, 3 and y = 1, 3, 2: covariance 1/3, both variances 2/3.
    x, y = floats(1.0, 2.0, 3.0), floats(1.0, 3.0, 2.0)
    assert shown(both=Correlation.of(x, y)) == {"both": pytest.approx(0.5)}
    split = Correlation.of(x[:1], y[:1]) + Correlation.of(x[1:], y[1:])
    assert split.number() == pytest.approx(0.5)
    assert shown(both=Correlation.of(x, -x)) == {"both": pytest.approx(-1.0)}
    assert shown(both=Correlation.of(x, floats(4.0, 4.0, 4.0)), left=EffectiveSampleSize.of(floats(0.0))) == {}


def explained(returns: torch.Tensor, residual: torch.Tensor) -> dict[str, float]:
    return shown(explained=ExplainedVariance.of(returns, returns - residual))


def test_explained_variance_by_hand():
    # R = 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5. R − V = 1, 0, 0, 1: variance 1/2 − 1/4 = 0.25.
    result = explained(floats(1.0, 2.0, 3.0, 6.0), floats(1.0, 0.0, 0.0, 1.0))
    assert result == {"explained": pytest.approx(1 - 0.25 / 3.5)}


def test_returns_that_differ_by_rounding_alone_have_nothing_to_explain():
    returns = floats(1.0, 1.0 + 2**-23, 1.0, 1.0)
    assert explained(returns, floats(0.1, -0.1, 0.0, 0.2)) == {}


def test_explained_variance_adds_up_over_a_split():
    returns, values = floats(1.0, 2.0, 3.0, 6.0), floats(0.0, 2.0, 3.0, 5.0)
    split = ExplainedVariance.of(returns[:1], values[:1]) + ExplainedVariance.of(returns[1:], values[1:])
    assert split.number() == pytest.approx(1 - 0.25 / 3.5)


def test_explained_variance_is_one_for_a_perfect_critic_and_negative_for_a_misleading_one():
    returns = floats(0.0, 1.0, 2.0)
    # A constant error is explained: only variance counts.
    assert explained(returns, torch.full_like(returns, -5.0)) == {"explained": 1.0}
    assert explained(returns, 2 * returns) == {"explained": pytest.approx(-3.0)}


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1234.567])
def test_explained_variance_is_absent_where_returns_are_all_alike(value):
    returns = torch.full((100_003,), value, dtype=torch.float64)
    assert explained(returns, returns) == {}


def test_explained_variance_of_broken_returns_is_shown_and_of_no_returns_absent():
    assert isnan(explained(floats(nan, 1.0), floats(nan, 1.0))["explained"])
    assert explained(floats(), floats()) == {}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 30))
def test_variance_agrees_with_torch_under_any_split(values, cut):
    tensor = floats(*values)
    split = Variance.of(tensor[:cut]) + Variance.of(tensor[cut:])
    expected = tensor.var(correction=0).item()
    assert split.number() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert split.number() >= 0
    assert Std(split).number() == pytest.approx(sqrt(expected), rel=1e-6, abs=1e-3)


def test_every_metric_has_one_line_of_meaning():
    assert all(text and "\n" not in text and text.endswith(".") for text in MEANINGS.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("objective/kl", MEANINGS["objective/kl"]),
        ("reward/helpful", MEANINGS["reward/<name>"]),
        ("reward/helpful_std", MEANINGS["reward/<name>_std"]),
        ("reward/helpful_none", MEANINGS["reward/<name>_none"]),
        ("eval/objective/scores", f"on the evaluation prompts: {MEANINGS['objective/scores']}"),
        ("eval/reward/helpful", f"on the evaluation prompts: {MEANINGS['reward/<name>']}"),
        ("eval/objective/scores_stderr", MEANINGS["eval/<name>_stderr"]),
        ("eval/win_rate/start", MEANINGS["eval/win_rate/start"]),
        ("eval/win_rate/start_n", MEANINGS["eval/<name>_n"]),
        ("eval/judge/win_rate/start_low", f"by the judge of evaluations: {MEANINGS['eval/win_rate/<other>_low']}"),
        ("eval/maths/objective/kl", f"of the evaluation set maths: {MEANINGS['eval/objective/kl']}"),
        ("eval/maths/reward/f", f"of the evaluation set maths: on the evaluation prompts: {MEANINGS['reward/<name>']}"),
        ("digits_found", "logged by code of the user."),
    ],
)
def test_meaning_of_names_that_are_made_in_the_run(name, expected):
    assert meaning(name) == expected


def test_the_page_has_every_metric_once_under_every_heading():
    page = document()
    assert all(page.count(f"| `{name}` |") == 1 for name in MEANINGS)
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(HEADINGS.values())
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(len(line.replace(r"\|", "").split("|")) == 4 for line in rows)  # no bar of a formula splits a cell


def test_the_page_in_docs_is_current():
    remedy = "docs/metrics.md is old: python -m nearstep.reports.metrics > docs/metrics.md"
    assert PAGE.read_text(encoding="utf-8") == document(), remedy
