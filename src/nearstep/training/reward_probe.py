"""Whether the reward prefers a policy's answers to damaged copies of them: one that does not has its sign swapped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.common.errors import RewardError
from nearstep.common.random_streams import stream
from nearstep.metrics import Mean, Metrics
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.model import ModelReward
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import rollout_of_rows
from nearstep.types import Prompts, Rollout

PROBED_ROWS = 32

Ids = list[int]
Answer = tuple[Ids, bool]  # its tokens, and whether it ended
Damage = Callable[[list[Answer], torch.Generator], list[Answer]]


def _cut(answers: list[Answer], draws: torch.Generator) -> list[Answer]:
    return [(ids[: max(1, len(ids) // 2)], False) for ids, _ in answers]


def _cut_and_ended(answers: list[Answer], draws: torch.Generator) -> list[Answer]:
    cut = _cut(answers, draws)
    return [
        (ids[: (len(ids) - 1) // 2] + ids[-1:], True) if ended else shorter
        for (ids, ended), shorter in zip(answers, cut, strict=True)
    ]


def _in_order(order: Callable[[int, torch.Generator], list[int]]) -> Damage:
    def damage(answers: list[Answer], draws: torch.Generator) -> list[Answer]:
        parts = [(ids[:-1], ids[-1:]) if ended else (ids, []) for ids, ended in answers]
        ordered = [[body[place] for place in order(len(body), draws)] + end for body, end in parts]
        return [(ids, ended) for ids, (_, ended) in zip(ordered, answers, strict=True)]

    return damage


def _exchanged(partner: Callable[[int, int], int]) -> Damage:
    """Each answer stands under the prompt of its partner, whose own partner it is.

    A reward that does not read the prompt prefers one answer of a pair, so it prefers the own one in half the cases
    exactly.
    """

    def damage(answers: list[Answer], draws: torch.Generator) -> list[Answer]:
        return [answers[partner(row, len(answers))] for row in range(len(answers))]

    return damage


def _across(row: int, rows: int) -> int:
    half = rows // 2
    return row if row >= 2 * half else (row + half) % (2 * half)


# By metric: what is done to the answers. A stop token stays at its end unless the answer is cut off.
DAMAGES: Mapping[str, tuple[Damage, ...]] = {
    "objective/own_over_cut": (_cut, _cut_and_ended),
    "objective/own_over_shuffled": (
        _in_order(lambda count, draws: torch.randperm(count, generator=draws).tolist()),
        _in_order(lambda count, draws: list(range(count))[::-1]),
    ),
    "objective/own_over_swapped": (_exchanged(lambda row, rows: rows - 1 - row), _exchanged(_across)),
}


@dataclass(frozen=True)
class ProbedAnswers:
    """A few answers of the policy as it begins."""

    prompts: Prompts
    rollout: Rollout

    @staticmethod
    def some(prompts: Prompts, rollout: Rollout, rows: list[int]) -> "ProbedAnswers":
        """Those of the given rows."""
        columns = {name: [column[row] for row in rows] for name, column in prompts.columns.items()}
        chosen = Prompts(
            [prompts.ids[row] for row in rows],
            [prompts.inputs[row] for row in rows],
            columns,
            [prompts.episodes[row] for row in rows],
        )
        return ProbedAnswers(chosen, rollout.select(torch.tensor(rows, device=rollout.tokens.device)))

    def damaged(self, damage: Damage, draws: torch.Generator) -> Rollout:
        """The same answers, damaged; their log-probs are none."""
        own = list(zip(self.rollout.completion_ids(), self.rollout.finished.tolist(), strict=True))
        changed = damage(own, draws)
        nothing = [torch.zeros(len(ids), device=self.rollout.tokens.device) for ids, _ in changed]
        ended = [finished for _, finished in changed]
        return rollout_of_rows(self.prompts, [ids for ids, _ in changed], nothing, ended, 0)


def own_over_damaged(answers: ProbedAnswers, rewards: Rewards, seed: int) -> Metrics:
    """The share of comparisons that the policy's own answers win, ties counted as half; nothing if the reward fails."""
    draws = stream(seed, "reward probe")
    try:
        own = _scores(answers.prompts, answers.rollout, rewards)
        wins = {
            name: torch.cat(
                [_wins(own, _scores(answers.prompts, answers.damaged(each, draws), rewards)) for each in kind]
            )
            for name, kind in DAMAGES.items()
        }
    except RewardError:  # of texts that the policy never gave
        return Metrics()
    return Metrics({name: Mean.of(won) for name, won in wins.items()})


def _scores(prompts: Prompts, rollout: Rollout, rewards: Rewards) -> Float[Tensor, " rows"]:
    scores = rewards(prompts, rollout)
    return scores.with_dense(scores.total, rollout)


def _wins(own: Float[Tensor, " rows"], other: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    both = ~(own.isnan() | other.isnan())
    return ((own > other).float() + (own == other).float() / 2)[both]


def is_of_models(rewards: RewardModule) -> bool:
    """Whether all sources are models that lie here: asking them once more costs little and changes nothing."""
    return isinstance(rewards, Rewards) and all(isinstance(source, ModelReward) for source in rewards.sources)


def is_of_models_and_functions(rewards: RewardModule) -> bool:
    """Whether all sources are models or functions of this process; functions may count their calls, or draw numbers."""
    kinds = (ModelReward, FunctionReward)
    return isinstance(rewards, Rewards) and all(isinstance(source, kinds) for source in rewards.sources)
