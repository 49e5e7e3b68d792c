"""The scores for a request: the weighted sum that training would make, row by row."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from nearstep.common.errors import RewardError
from nearstep.rewards.ask import OnError, SourceCaller
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.combine import merged_extras, merged_metrics
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.model import ModelReward
from nearstep.rewards.protocol import RewardSource
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.remote.wire import encode_answer
from nearstep.rewards.values import PerSpan, PerToken, Value
from nearstep.rewards.workers.process import as_json

KNOWN_TOKENIZERS = 8  # of the policies that ask, remembered


class ServerScorer:
    """The rewards of a server. A row on which one fails is answered with the reason: the trainer decides about it."""

    def __init__(self, sources: Sequence[RewardSource], names: Sequence[str], weights: Sequence[float]) -> None:
        self._caller = SourceCaller(list(sources), list(names), OnError("drop", largest_failed_share=1.0), EventLoop())
        self._weights = list(weights)
        self._for_policy = lru_cache(maxsize=KNOWN_TOKENIZERS)(self._reading_like)

    def score(self, batch: RewardBatch, policy: TokenizerIdentity) -> bytes:
        """The body of the answer; `policy` is the tokenizer that wrote the ids of the batch."""
        results = self._for_policy(policy).ask(batch)
        rewards = [self._add_up([result.values[row] for result in results]) for row in range(len(batch))]
        return encode_answer(Answer(rewards, merged_extras(results), merged_metrics(results)), batch.episodes)

    def _reading_like(self, policy: TokenizerIdentity) -> SourceCaller:
        """The same caller, whose reward models read ids where the policy's tokenizer is theirs, and text elsewhere."""
        sources = [
            source.for_policy(policy) if isinstance(source, ModelReward) else source for source in self._caller.sources
        ]
        return replace(self._caller, sources=sources)

    def _add_up(self, values: Sequence[Value | RewardError]) -> object:
        """The score of one row as JSON, or the reason why there is none."""
        failed = [value for value in values if isinstance(value, RewardError)]
        if failed:
            return RewardError(" ".join(map(str, failed)))
        applying = [(weight, value) for weight, value in zip(self._weights, values, strict=True) if value is not None]
        if not applying:
            return None
        numbers = [weight * value for weight, value in applying if isinstance(value, float)]
        if len(numbers) == len(applying):
            return sum(numbers)
        if len(values) == 1:
            return as_json(_weighted(*applying[0]))
        return RewardError(
            "a reward of single tokens cannot be added to others on a server: serve it by itself, and let the "
            "trainer add up"
        )


def _weighted(weight: float, value: Value | RewardError) -> Value:
    match value:
        case PerToken():
            return PerToken(tuple(weight * worth for worth in value.values))
        case PerSpan():
            return PerSpan(tuple((start, end, weight * worth) for start, end, worth in value.values))
        case _:
            raise AssertionError(value)
