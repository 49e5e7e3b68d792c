"""How the values of several reward sources are added up: weighted, by name, None left out, a failed row not scored."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.ragged import row_numbers
from nearstep.common.errors import ConfigError, RewardError, shorten
from nearstep.metrics import Mean, Metrics
from nearstep.rewards.ask import OnError, SourceCaller, SourceResult
from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.decoding import per_token, reward_batch
from nearstep.rewards.protocol import NOTHING_BEGUN, EarlyRows, HeadStart, RewardSource, StartsEarly
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.sharing import Alone, Sharing
from nearstep.rewards.values import LARGEST_REWARD, PerSpan, PerToken, total
from nearstep.rewards.workers.source import WorkerReward
from nearstep.types import Prompts, Rollout, Scores


@dataclass(frozen=True)
class CombinedRewards:
    """What became of a batch, in Python's float64; NaN for a row that was not scored.

    `last` is the reward of a row at its end, `tokens` those of its tokens (None where there are none); both
    are weighted. `parts` are the sums of every source before its weight, NaN where it did not apply or failed.
    """

    last: list[float]
    tokens: list[list[float] | None]
    parts: dict[str, list[float]]
    failures: dict[str, dict[int, str]]  # by source and row, why it failed at last
    extras: dict[str, list[object]]
    metrics: Metrics

    @property
    def totals(self) -> list[float]:
        """All rewards of a row; NaN for one that was not scored."""
        return [last + math.fsum(tokens or ()) for last, tokens in zip(self.last, self.tokens, strict=True)]


class Rewards:
    """The weighted sum of several sources."""

    def __init__(
        self,
        sources: Sequence[RewardSource],
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: Sequence[float] | None = None,
        on_error: OnError | None = None,
        state: Callable[[], object] = lambda: None,
        sharing: Sharing | None = None,
    ) -> None:
        """Without `weights` each source weighs 1; `tokenizer` is the policy's, `state()` the trainer's state; of the
        processes that have the same rows (`sharing`) one asks.

        Raises a ConfigError where the weights are not one finite number for each source.
        """
        self.sources = list(sources)
        self.names = distinct(source.name for source in sources)
        self.weights = checked_weights(weights, self.names)
        self._tokenizer = tokenizer
        self._state = state
        self._on_error = on_error or OnError()
        self._caller = SourceCaller(self.sources, self.names, self._on_error, EventLoop())
        self._sharing: Sharing = sharing or Alone()

    def early(self, prompts: Prompts) -> EarlyRows:
        """Be ready to score rows of `prompts` while others are generated; the next call is given what that began."""
        begun = {
            number: source.begin_early(len(prompts))
            for number, source in enumerate(self.sources)
            if isinstance(source, StartsEarly) and self._sharing.leads
        }
        return EarlyRows(prompts, self._tokenizer, self._state, begun)

    def __call__(self, prompts: Prompts, rollout: Rollout, early: EarlyRows | None = None) -> Scores:
        """Score every episode by its last row; the scores do not depend on what was scored `early`.

        Raises a RewardError where a source fails and the user wants no row dropped.
        """
        with early or self.early(prompts) as begun:
            last = rollout.last_segments()
            batch = reward_batch(prompts, last, self._tokenizer, self._state())
            combined = self.combine(batch, begun.head_starts)
        device = rollout.tokens.device
        return Scores(
            total=torch.tensor(combined.last, dtype=torch.float64).float().to(device),
            parts={
                name: torch.tensor(part, dtype=torch.float64).float().to(device)
                for name, part in combined.parts.items()
            },
            dense=_on_all_segments(_dense(combined.tokens, last), rollout),
            extras=combined.extras,
            metrics=combined.metrics,
            failures=combined.failures,
            weights=dict(zip(self.names, self.weights, strict=True)),
        )

    def close(self) -> None:
        """End worker processes; the next call starts new ones."""
        for source in self.sources:
            if isinstance(source, WorkerReward):
                source.close()

    def combine(self, batch: RewardBatch, begun: Mapping[int, HeadStart] = NOTHING_BEGUN) -> CombinedRewards:
        """Ask all sources about a batch, of which some have `begun`, and add up; raises as calling does."""
        own: list[CombinedRewards] = []

        def ask() -> CombinedRewards:
            own.append(self._combine(batch, begun))
            return replace(own[0], extras={})  # may be of any class, and only who asked writes them

        answer = self._sharing.once(ask)
        return own[0] if own else answer

    def _combine(self, batch: RewardBatch, begun: Mapping[int, HeadStart]) -> CombinedRewards:
        results = self._caller.ask(batch, begun)
        rows = range(len(batch))
        scored = [self._is_scored(results, row, batch) for row in rows]
        return CombinedRewards(
            last=[self._at_the_end(results, row, batch) if scored[row] else math.nan for row in rows],
            tokens=[self._on_the_way(results, row, batch) if scored[row] else None for row in rows],
            parts={result.name: [_part(result, row) for row in rows] for result in results},
            failures={result.name: reasons for result in results if (reasons := _reasons(result))},
            extras=merged_extras(results),
            metrics=Metrics(
                {
                    **{name: _mean(sum(values), len(values)) for name, values in merged_metrics(results).items()},
                    **self._failed_shares(results),
                }
            ),
        )

    def _is_scored(self, results: Sequence[SourceResult], row: int, batch: RewardBatch) -> bool:
        """Whether the row has a reward: no source failed on it, and one at least applies."""
        if any(isinstance(result.values[row], RewardError) for result in results):
            return False
        if any(result.values[row] is not None for result in results):
            return True
        if self._on_error.policy == "drop":
            return False
        raise RewardError(
            f"no reward applies to {batch.place(row)}, completion {shorten(batch.completions[row])}: "
            f"{', '.join(self.names)} returned None. A made-up 0 would be learned from; "
            "let at least one reward score every row."
        )

    def _at_the_end(self, results: Sequence[SourceResult], row: int, batch: RewardBatch) -> float:
        """Σ weight · value over the sources that gave one number; checks the sum over all of them."""
        parts = [(weight, _part(result, row)) for weight, result in zip(self.weights, results, strict=True)]
        whole = sum(weight * part for weight, part in parts if not math.isnan(part))
        if abs(whole) > LARGEST_REWARD:
            raise RewardError(
                f"the weighted sum of {', '.join(self.names)} is {whole:g} for {batch.place(row)}: "
                f"beyond ±{LARGEST_REWARD:g} the value loss would overflow. Lower the weights."
            )
        numbers = ((weight, result.values[row]) for weight, result in zip(self.weights, results, strict=True))
        return sum((weight * value for weight, value in numbers if isinstance(value, float)), start=0.0)

    def _on_the_way(self, results: Sequence[SourceResult], row: int, batch: RewardBatch) -> list[float] | None:
        """Σ weight · value of every token, over the sources that spread their reward; None if there is none."""
        ids, finished = batch.completion_ids[row], batch.finished[row]
        spread = [
            [weight * reward for reward in per_token(value, ids, finished, self._tokenizer)]
            for weight, result in zip(self.weights, results, strict=True)
            if isinstance(value := result.values[row], PerToken | PerSpan)
        ]
        return [sum(at_token) for at_token in zip(*spread, strict=True)] if spread else None

    def _failed_shares(self, results: Sequence[SourceResult]) -> dict[str, Mean]:
        """The share of rows on which each source failed, where the user lets a run go on after that."""
        if self._on_error.policy == "raise":
            return {}
        return {f"reward/{result.name}_failed": _mean(len(result.failed), len(result.values)) for result in results}


def _mean(total: float | int, count: int) -> Mean:
    return Mean(torch.tensor(total, dtype=torch.float64), torch.tensor(count, dtype=torch.float64))


def _reasons(result: SourceResult) -> dict[int, str]:
    return {row: str(result.values[row]) for row in result.open_rows}


def _part(result: SourceResult, row: int) -> float:
    value = result.values[row]
    return math.nan if isinstance(value, RewardError) else total(value)


def _dense(tokens: Sequence[list[float] | None], rollout: Rollout) -> Tensor | None:
    """The rewards of all actions back to back; None if no row has any."""
    if all(row_rewards is None for row_rewards in tokens):
        return None
    rows = zip(rollout.completion_ids(), tokens, rollout.is_action.split(rollout.row_lengths.tolist()), strict=True)
    action_rewards = []
    for row, (ids, row_rewards, is_action) in enumerate(rows):
        own = torch.tensor([0.0] * len(ids) if row_rewards is None else row_rewards, dtype=torch.float64)
        chosen = is_action[len(is_action) - len(ids) :].cpu()
        if own[~chosen].any():
            raise RewardError(f"row {row}: a reward is spread over tokens that the policy did not choose: give them 0.")
        action_rewards.append(own[chosen])
    return torch.cat(action_rewards).float().to(rollout.tokens.device)


def _on_all_segments(dense: Tensor | None, rollout: Rollout) -> Tensor | None:
    """The rewards of the actions of all rows, from those of the last row of each episode: 0 in the others."""
    if dense is None or rollout.episodes is None:
        return dense
    last = rollout.ends_episode[row_numbers(rollout.action_counts)]
    return dense.new_zeros(len(last)).index_put((last,), dense)


def merged_extras(results: Sequence[SourceResult]) -> dict[str, list[object]]:
    """The columns that sources logged, by names told apart."""
    logged = [(column, values) for result in results for column, values in result.extras.items()]
    columns = distinct(column for column, _ in logged)
    return {column: values for column, (_, values) in zip(columns, logged, strict=True)}


def checked_weights(weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """One finite weight for each reward, 1 each if none are given; ConfigError otherwise."""
    if not names:
        raise ConfigError("there is no reward: give a reward model, reward functions, a reward_url, or several")
    checked = [1.0] * len(names) if weights is None else list(weights)
    if len(checked) != len(names):
        raise ConfigError(
            f"{len(checked)} reward weight(s) for {len(names)} reward(s) ({', '.join(names)}): "
            "give one for each, the reward model's first"
        )
    for name, weight in zip(names, checked, strict=True):
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of reward {name!r} is {weight}: give a finite number")
    return checked


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, a repeated one with the first free number behind it: a, a give a, a_2."""
    taken: list[str] = []
    for name in names:
        free, number = name, 2
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        taken.append(free)
    return taken


def merged_metrics(results: Sequence[SourceResult]) -> dict[str, list[float]]:
    """The numbers that sources reported, by name."""
    logged: dict[str, list[float]] = {}
    for result in results:
        for name, values in result.metrics.items():
            logged.setdefault(name, []).extend(values)
    return logged
