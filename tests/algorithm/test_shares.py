"""Rules for advantages whose statistics reach over processes: two shares of a batch get what the whole gets."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch

from nearstep.algorithm.advantage_rules import GAE, GDPO, CreditInputs, RewardPart
from nearstep.algorithm.baselines import ExplainedBaseline

COUNTS, GROUP = torch.tensor([2, 1, 3, 1, 2, 2, 1, 3]), 2
SCORED = torch.tensor([True] * 5 + [False] + [True] * 2)


class Two:
    """What two processes tell each other, each in a thread of its own."""

    def __init__(self) -> None:
        self.barrier, self.said = Barrier(2, timeout=20), [torch.zeros(0)] * 2

    def heard(self, rank: int, values: torch.Tensor) -> list[torch.Tensor]:
        self.said[rank] = values
        self.barrier.wait()
        both = list(self.said)
        self.barrier.wait()
        return both


def batch() -> CreditInputs:
    draws = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, int(COUNTS.sum()), dtype=torch.float64, generator=draws)
    parts = torch.randn(2, len(COUNTS), dtype=torch.float64, generator=draws)
    nothing = torch.zeros(len(COUNTS), dtype=torch.float64)
    return CreditInputs(
        rewards, values, COUNTS, nothing, nothing, SCORED, 1, 3, group_size=GROUP,
        parts=(RewardPart("one", 1.0, parts[0]), RewardPart("two", 2.0, parts[1])),
    )  # fmt: skip


def share(whole: CreditInputs, rank: int, border: int, two: Two) -> CreditInputs:
    rows = slice(0, border) if rank == 0 else slice(border, None)
    first = int(whole.action_counts[:border].sum())
    actions = slice(0, first) if rank == 0 else slice(first, None)
    return replace(
        whole,
        rewards=whole.rewards[actions], values=whole.values[actions], action_counts=whole.action_counts[rows],
        final_values=whole.final_values[rows], final_advantages=whole.final_advantages[rows],
        scored=whole.scored[rows], first_row=rank * border,
        parts=tuple(replace(part, values=part.values[rows]) for part in whole.parts),
        add_up=lambda values: sum(two.heard(rank, values)),
        gather_rows=lambda values: torch.cat(two.heard(rank, values)),
    )  # fmt: skip


@pytest.mark.parametrize("rule", [ExplainedBaseline(GAE()), GDPO()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("border", [3, 6])
def test_two_shares_get_what_the_whole_gets(rule, border):
    whole, two = batch(), Two()
    if isinstance(rule, ExplainedBaseline):  # values that explain little of the whole, more of one share
        whole = replace(whole, values=whole.rewards * torch.linspace(2, -1, len(whole.rewards)))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(rule.credit, [share(whole, rank, border, two) for rank in range(2)]))
    alone = rule.credit(whole)
    torch.testing.assert_close(torch.cat([each.advantages for each in found]), alone.advantages)
    for each in found:
        assert each.fell_back == alone.fell_back
        assert each.explained_variance == pytest.approx(alone.explained_variance)
