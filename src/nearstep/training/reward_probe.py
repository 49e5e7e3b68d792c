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


def _cut(ids: Ids, finished: bool, draws: torch.Generator) -> tuple[Ids, bool]:
    return ids[: max(1, len(ids) // 2)], False


def _cut_and_ended(ids: Ids, finished: bool, draws: torch.Generator) -> tuple[Ids, bool]:
    return (ids[: (len(ids) - 1) // 2] + ids[-1:], True) if finished else _cut(ids, finished, draws)


def _in_order(order: Callable[[int, torch.Generator], list[int]]) -> "Damage":
    def damage(ids: Ids, finished: bool, draws: torch.Generator) -> tuple[Ids, bool]:
        body, end = (ids[:-1], ids[-1:]) if finished else (ids, [])
        return [body[place] for place in order(len(body), draws)] + end, finished

    return damage


Damage = Callable[[Ids, bool, torch.Generator], tuple[Ids, bool]]
# By metric: what is done to an answer. A stop token stays at its end unless the answer is cut off.
DAMAGES: Mapping[str, tuple[Damage, ...]] = {
    "objective/own_over_cut": (_cut, _cut_and_ended),
    "objective/own_over_shuffled": (
        _in_order(lambda count, draws: torch.randperm(count, generator=draws).tolist()),
        _in_order(lambda count, draws: list(range(count))[::-1]),
    ),
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
        rows = zip(self.rollout.completion_ids(), self.rollout.finished.tolist(), strict=True)
        changed = [damage(ids, finished, draws) for ids, finished in rows]
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
