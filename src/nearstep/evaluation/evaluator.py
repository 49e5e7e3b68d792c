"""How good the policy is on held-out prompts, and what it writes: greedy responses, scored like those of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nearstep.models.roles import Policy
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import RolloutEngine, generate
from nearstep.scale.backend import Backend
from nearstep.types import Max, Mean, Metrics, Prompts, Rollout, Scores, Spread

SAMPLE_ROWS = 4


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all evaluation prompts and all processes."""

    metrics: Metrics


@dataclass(frozen=True)
class Evaluator:
    """Plays every evaluation prompt once, greedily, so that two evaluations differ by weights alone.

    `chunks` are this process's evaluation prompts; `sample_prompts` those of the sample table, the same on every
    process.
    """

    policy: Policy
    engine: RolloutEngine
    rewards: RewardModule
    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    chunks: Sequence[Prompts]
    sample_prompts: Prompts

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything to evaluate on."""
        return len(self.chunks) > 0

    def decode(self, ids: list[int]) -> str:
        """Text of token ids with special tokens visible."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def evaluate(self) -> Evaluation:
        """Scores and lengths over all rows, none left out."""
        metrics = Metrics()
        self.engine.load(self.policy, version=0)
        for prompts in self.chunks:
            if len(prompts):
                metrics += _metrics(*self._play(prompts))
        gathered = self.backend.gather(metrics.cpu())
        return Evaluation(sum(gathered, start=Metrics()))

    def samples(self) -> list[tuple[str, str, float]]:
        """Query, response and score of a few prompts, as the policy is now."""
        self.engine.load(self.policy, version=0)
        rollout, scores = self._play(self.sample_prompts)
        totals = scores.with_dense(scores.total, rollout).tolist()
        texts = zip(rollout.prompt_ids(), rollout.completion_ids(), totals, strict=True)
        return [(self.decode(query), self.decode(response), score) for query, response, score in texts]

    def _play(self, prompts: Prompts) -> tuple[Rollout, Scores]:
        with self.rewards.early(prompts) as early:
            rollout = generate(self.engine, prompts, early)
        return rollout, self.rewards(prompts, rollout, early)


def _metrics(rollout: Rollout, scores: Scores) -> Metrics:
    lengths = rollout.action_counts.float()
    parts = {name: part[~part.isnan()] for name, part in scores.parts.items()}
    totals = scores.with_dense(scores.total, rollout)[scores.scored]
    return Metrics({
        "objective/scores": Mean.of(totals),
        "objective/score_spread": Spread.of(totals),
        "response/length_mean": Mean.of(lengths),
        "response/length_max": Max.of(lengths),
        "response/truncated": Mean.of((~rollout.finished).float()),
        **{f"reward/{name}": Mean.of(part) for name, part in parts.items()},
    })  # fmt: skip
