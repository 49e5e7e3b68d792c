"""How good the policy is on held-out prompts, and what it writes: greedy responses, scored like those of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nearstep.metrics import Max, Mean, Metrics, Std
from nearstep.models.roles import Policy
from nearstep.rewards.decoding import completion_text
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import GenerationSettings, RolloutEngine, load, play
from nearstep.scale.backend import Backend
from nearstep.training.state import State
from nearstep.types import Prompts, Rollout, Scores

SAMPLE_ROWS = 4


@dataclass(frozen=True)
class Evaluator:
    """Plays every evaluation prompt once, greedily, so that two evaluations differ by weights alone.

    It plays on the engine of the training run, in the way that `generation` says. `chunks` are this process's
    evaluation prompts; `sample_prompts` those of the sample table, the same on every process.
    """

    policy: Policy
    generation: GenerationSettings
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

    def judged(self, ids: list[int], finished: bool) -> str:
        """A response as rewards are given it."""
        return completion_text(ids, finished, self.tokenizer)

    def evaluate(self, engine: RolloutEngine, state: State) -> Metrics:
        """Scores and lengths over all rows and all processes, none left out."""
        metrics = Metrics()
        self._load(engine, state)
        for prompts in self.chunks:
            if len(prompts):
                metrics += _metrics(*self._play(engine, prompts))
        return sum(self.backend.gather(metrics.cpu()), start=Metrics())

    def samples(self, engine: RolloutEngine, state: State) -> list[tuple[str, str, float]]:
        """Query, response and score of a few prompts, as the policy is now."""
        self._load(engine, state)
        rollout, scores = self._play(engine, self.sample_prompts)
        totals = scores.with_dense(scores.total, rollout).tolist()
        rows = zip(rollout.prompt_ids(), rollout.completion_ids(), rollout.finished.tolist(), totals, strict=True)
        return [(self.decode(query), self.judged(ids, ended), score) for query, ids, ended, score in rows]

    def _load(self, engine: RolloutEngine, state: State) -> None:
        """The weights after an update are those that the next one will use, and have its number."""
        load(engine, self.policy, state.update + 1)

    def _play(self, engine: RolloutEngine, prompts: Prompts) -> tuple[Rollout, Scores]:
        with self.rewards.early(prompts) as early:
            rollout = play(engine, prompts, self.generation, early)
        return rollout, self.rewards(prompts, rollout, early)


def _metrics(rollout: Rollout, scores: Scores) -> Metrics:
    lengths = rollout.action_counts.float()
    parts = {name: part[~part.isnan()] for name, part in scores.parts.items()}
    totals = scores.with_dense(scores.total, rollout)[scores.scored]
    return Metrics({
        "objective/scores": Mean.of(totals),
        "objective/scores_std": Std.of(totals),
        "response/length_mean": Mean.of(lengths),
        "response/length_max": Max.of(lengths),
        "response/truncated": Mean.of((~rollout.finished).float()),
        **{f"reward/{name}": Mean.of(part) for name, part in parts.items()},
    })  # fmt: skip
