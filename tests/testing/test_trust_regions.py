"""The laws of trust regions: all of ours keep them, and every broken one is caught at the law that it breaks."""

import pytest
from examples.my_region import STRICTER, MyRegion

from nearstep import ConfigError, PPOConfig
from nearstep.algorithm.trust_regions import BinaryKL, Clip, DeclaresExceptions, TopKKL, TopKTV
from nearstep.assembly.axes import trust_region
from nearstep.common.errors import ConformanceError
from nearstep.config.axes import TRUST_REGIONS
from nearstep.testing import check_trust_region
from nearstep.testing.tokens import edge_tokens, farther, random_tokens
from nearstep.testing.trust_regions import LAWS
from tests.testing.broken_regions import BROKEN, NoDirection

CASES = [(law, region) for law, regions in BROKEN.items() for region in regions]


@pytest.mark.parametrize("name", TRUST_REGIONS)
def test_ours_keep_every_law(name):
    region = trust_region(PPOConfig(trust_region=name))
    result = check_trust_region(region)
    declared = region.exceptions if isinstance(region, DeclaresExceptions) else {}
    assert [law for law, _ in result.held] == [law.name for law in LAWS if law.name not in declared]


@pytest.mark.parametrize("name", TRUST_REGIONS)
def test_every_declared_exception_is_one(name):
    """A law that a region keeps after all is not to be declared away."""
    region = trust_region(PPOConfig(trust_region=name))
    for law in LAWS:
        if isinstance(region, DeclaresExceptions) and law.name in region.exceptions:
            assert law.counterexample(region) is not None, f"{name} keeps {law.name}"


@pytest.mark.parametrize(
    "region",
    [Clip(0.2, 0.28), Clip(5.0, 0.1), BinaryKL(0.001, 3.0), TopKTV(0.3, 0.01, top_k=1), TopKKL(0.2, 0.01, top_k=3),
     MyRegion(), STRICTER],
    ids=repr,
)  # fmt: skip
def test_so_do_other_settings_of_them_and_the_example(region):
    check_trust_region(region)


@pytest.mark.parametrize(("law", "region"), CASES, ids=[type(region).__name__ for _, region in CASES])
def test_a_broken_one_is_caught_at_its_law(law, region):
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_trust_region(region)


def test_every_law_is_broken_by_one():
    assert set(BROKEN) == {law.name for law in LAWS}


def test_a_law_may_be_skipped():
    with pytest.raises(ConformanceError, match="'returning'") as caught:
        check_trust_region(NoDirection())
    assert "damped on its way back" in str(caught.value)
    assert "skip=returning" in str(caught.value)
    assert check_trust_region(NoDirection(), skip=("returning",)).skipped == ("returning",)


def test_dual_clipping_declares_that_it_breaks_the_law_of_returning():
    assert check_trust_region(Clip()).skipped == ()
    result = check_trust_region(Clip(dual=3.0))
    assert result.skipped == ("returning",)
    assert result.lines()[0] == "trust region Clip: 14 laws hold, 1 skipped (returning)"


@pytest.mark.parametrize(("name", "reason"), [("on_policy", "universal"), ("on_polcy", "no law")])
def test_only_laws_that_are_not_universal_may_be_skipped(name, reason):
    with pytest.raises(ConfigError, match=f"{reason}.*own_token, returning, farther, only_sign, column_order"):
        check_trust_region(Clip(), skip=(name,))


@pytest.mark.parametrize("top_k", [0, 1, 4, 20])
def test_the_tokens_are_distributions(top_k):
    for tokens in (random_tokens(top_k), edge_tokens(top_k), farther(random_tokens(top_k), 1.5)):
        for policy in (tokens.now, tokens.old):
            assert (policy.sampled <= 0).all()
            assert (policy.top is None) == (top_k == 0)
            if policy.top is not None:
                assert policy.top.shape == (len(tokens), top_k)
                assert (policy.top == policy.sampled[:, None]).any(-1).all(), "the sampled token is among them"
                assert (policy.top.exp().sum(-1) <= 1 + 1e-6).all()


def test_farther_moves_every_probability_by_the_same_factor():
    tokens = random_tokens(3)
    moved = farther(tokens, 1.5)
    step, stride = (policy.sampled.exp() - tokens.old.sampled.exp() for policy in (tokens.now, moved.now))
    went = stride != step
    assert went.float().mean() > 0.3
    assert (stride[went] - 1.5 * step[went]).abs().max() < 1e-6
