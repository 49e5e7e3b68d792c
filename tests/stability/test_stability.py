"""The stability benchmark's own parts: task, drifting engine, numbers and words of the report; a run of each method."""

import math
import random

import pytest
import torch
from benchmarks.drift import task
from benchmarks.drift.engine import DriftingEngine, rounded
from benchmarks.drift.play import Moment, Regime, play
from benchmarks.drift.report import Claim, Run, facts, plot, rows, table

from benchmarks import stability
from nearstep.models.roles import make_policy
from nearstep.testing.world import PROMPTS, prompts_of, small_model
from tests.lanes import sampled, slow

TINY = Regime(updates=2, supervised_steps=30, batch_size=16, prompts=16, length=1)


def test_the_reward_is_1_for_the_sorted_letters_alone():
    prompts = ["c a b >"] * 5
    assert task.is_right(prompts, ["a b c", " a b c ", "a b", "a b c c", "c b a"]) == [1, 1, 0, 0, 0]
    assert task.answer("z a z >") == "a z z"


def test_questions_are_the_same_again_and_others_for_another_seed():
    assert task.questions(5, 4, seed=1) == task.questions(5, 4, seed=1)
    assert task.questions(5, 4, seed=1) != task.questions(5, 4, seed=2)
    assert all(len(question.split()) == 5 for question in task.questions(5, 4, seed=1))


def test_teachers_slip_as_often_as_they_are_told():
    text = " ".join("a" * 20_000)
    assert task.with_slips(text, 0.0, random.Random(0)) == text
    slipped = task.with_slips(text, 0.26, random.Random(0)).split()
    assert sum(letter != "a" for letter in slipped) / 20_000 == pytest.approx(0.25, abs=0.01)  # one in 26 is an a again


@pytest.mark.parametrize(("precision", "step"), [(torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3),
                                                 (torch.bfloat16, 2**-8)])  # fmt: skip
def test_rounding_is_as_coarse_as_the_type(precision, step):
    matrix = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 30)[:, None]
    matrix[3] = 0.0  # as an adapter's at its start, or a padding token's
    bias = torch.randn(40)
    found = rounded({"weight": matrix, "bias": bias}, precision)
    large = matrix.abs() > 0.05 * matrix.abs().amax(1, keepdim=True)  # smaller ones are subnormal
    relative = ((found["weight"] - matrix) / matrix).abs()[large]
    assert step / 2 < relative.max() <= step
    torch.testing.assert_close(rounded(found, precision)["weight"], found["weight"])  # what is rounded stays
    assert torch.equal(found["bias"], bias)


class Remembers:
    """An inner engine that notes what it was told to play."""

    def __init__(self):
        self.loads = []

    def load(self, policy, version):
        self.loads.append((policy.model.lm_head.weight[0, 0].item(), version))

    def generate(self, prompts, *, top_k=0, limits=None):
        raise NotImplementedError


def weights_and_versions(**drift):
    """What the inner engine plays in five updates, in which the first weight is 1, 2, … 5."""
    policy, inner = make_policy(small_model()), Remembers()
    engine = DriftingEngine(inner, **drift)
    for update in range(1, 6):
        with torch.no_grad():
            policy.model.lm_head.weight[0, 0] = float(update)
        engine.load(policy, version=update)
    assert policy.model.lm_head.weight[0, 0] == 5
    return inner.loads


def test_a_stale_engine_plays_what_was_some_updates_ago():
    assert weights_and_versions() == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    assert weights_and_versions(stale_by=2) == [(1, 1), (1, 1), (1, 1), (2, 2), (3, 3)]


def test_a_rounding_engine_plays_new_weights_rounded():
    found = weights_and_versions(precision=torch.float8_e5m2)
    assert [version for _, version in found] == [1, 2, 3, 4, 5]
    assert found[4][0] == pytest.approx(5, rel=1 / 8)


def test_prompts_of_the_small_world_are_episodes():
    assert prompts_of([1, 0]).episodes == [1, 0]
    assert prompts_of([1, 0]).ids == [list(PROMPTS[1]), list(PROMPTS[0])]


def moments(*rewards, gap=0.1):
    return tuple(Moment(reward=reward, gap=gap, kl=0.2, dropped=0.3, entropy=1.0) for reward in rewards)


def run(method, *rewards, seed=0, updates=None, gap=0.1):
    return Run("stale", method, seed, updates or len(rewards), moments(*rewards, gap=gap))


def test_final_and_best_are_means_of_a_fifth():
    rising = run("a", *[number / 10 for number in range(10)])
    assert rising.final == pytest.approx((0.8 + 0.9) / 2)
    assert rising.best == rising.final
    assert not rising.collapsed
    fallen = run("a", 0.3, 0.5, 1.0, 0.8, *[0.39] * 6)
    assert fallen.first == pytest.approx(0.4)
    assert fallen.best == pytest.approx(0.9)
    assert fallen.final == pytest.approx(0.39)
    assert fallen.collapsed
    assert not run("a", 0.3, 0.5, 1.0, 0.8, *[0.41] * 6).collapsed


def test_a_run_that_ended_early_has_lost_all():
    ended = run("a", 0.9, 0.9, 0.9, updates=10)
    assert (ended.final, ended.best) == (0.0, pytest.approx(0.9))
    assert ended.collapsed
    assert not math.isfinite(rows([Run("stale", "a", 0, 20, ())])[0].gap_last)


def test_rows_are_means_over_seeds():
    found = rows([run("a", *[0.2] * 10, gap=0.1), run("b", *[0.5] * 10), run("a", *[0.4] * 10, seed=1, gap=0.3)])
    assert [row.method for row in found] == ["a", "b"]
    assert found[0].finals == (pytest.approx(0.2), pytest.approx(0.4))
    assert found[0].final == pytest.approx(0.3)
    assert found[0].spread == pytest.approx(0.1)
    assert found[0].gap_last == pytest.approx(0.2)
    lines = table(found).splitlines()
    assert lines[2] == "| a | 0.300 | 0.20 0.40 | 0.300 | 0 of 2 | 0.2000 | 0.2000 | 0.2000 | 0.300 |"


def test_a_run_is_read_as_it_was_written():
    played = run("a", 0.25, 0.123456789, 0.5)
    assert stability.unpacked(stability.packed(played)) == run("a", 0.25, 0.12346, 0.5)


def test_the_gap_is_that_of_the_second_and_of_the_last_fifth():
    gaps = [Moment(0.5, gap, 0.2, 0.3, 1.0) for gap in (0.0, 0.1, 9.0, 9.0, 0.4)]
    (row,) = rows([Run("stale", "a", 0, 5, tuple(gaps))])
    assert (row.gap_first, row.gap_last) == (pytest.approx(0.1), pytest.approx(0.4))


def test_facts_say_where_the_paper_is_contradicted():
    found = rows([
        run("good", *[0.9] * 10, gap=0.02), run("bad", *[0.8] * 8, 0.1, 0.1, gap=0.3), run("mixed", *[0.8] * 10),
        run("mixed", *[0.8] * 8, 0.0, 0.0, seed=1),
    ])  # fmt: skip
    claims = [
        Claim("some fall", ("bad", "mixed"), collapses=True),
        Claim("others hold", ("good", "mixed"), collapses=False),
        Claim("this was not played", ("absent",), collapses=True),
    ]
    assert facts(found, claims) == (
        "Reward at the end, best first: good 0.90 ± 0.00, mixed 0.40 ± 0.40, bad 0.10 ± 0.00. "
        "Collapsed: bad (1 of 1 seeds), mixed (1 of 2 seeds). "
        "Mean |π − μ| at the end is largest with bad (0.3) and smallest with good (0.02). "
        "The paper: some fall; so here. The paper: others hold; not so for mixed."
    )


@pytest.fixture(scope="module")
def start():
    return task.beginner(TINY.length, TINY.supervised_steps, TINY.slips, seed=0)


@pytest.mark.parametrize("method", sampled(stability.METHODS, 4))
def test_every_method_plays(method, start):
    found = play(TINY, stability.METHODS[method], start, seed=0)
    assert len(found) == 2
    assert all(math.isfinite(number) for moment in found for number in vars(moment).values())
    assert found[0].gap < 1e-6, "an engine that does not drift records what the trainer computes"


@pytest.mark.parametrize("drift", [slow({"stale_by": 1}), {"precision": torch.float8_e5m2}], ids=["stale", "rounded"])
def test_the_mismatch_is_that_of_the_engine(drift, start):
    regime = Regime(**{**vars(TINY), **drift, "learning_rate": 1e-2})
    found = play(regime, stability.METHODS["clip"], start, seed=0)
    assert found[1].gap > 1e-3
    assert found[1].kl > 0
    assert (found[0].gap > 1e-3) == ("precision" in drift)


@pytest.mark.slow
def test_the_start_is_left_as_it_is(start):
    before = {name: weights.clone() for name, weights in start.state_dict().items()}
    play(TINY, stability.METHODS["clip"], start, seed=0)
    assert all(torch.equal(weights, before[name]) for name, weights in start.state_dict().items())


@pytest.mark.slow
def test_the_page_and_the_picture_are_made(tmp_path):
    found = [run(method, *[0.5] * 10, seed=seed) for method in stability.METHODS for seed in (0, 1)]
    text = stability.page(found, {"stale": stability.REGIMES["stale"]}, seconds=120)
    assert "## stale: the engine 8 updates behind" in text
    assert text.count("\n| ") == 1 + 1 + len(stability.METHODS)
    assert "divergence regions hold; so here." in text
    assert "PG-IS and CISPO, without a trust region, collapse; not so for PG-IS, CISPO." in text
    pytest.importorskip("matplotlib")
    plot(found, tmp_path / "stability.png")
    assert (tmp_path / "stability.png").stat().st_size > 10_000
