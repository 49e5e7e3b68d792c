"""How answers and preference pairs are scored outside training: by the rewards of the settings, or by a model's own."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import RewardError
from nearstep.config.evaluation import EvalConfig
from nearstep.evaluation.answers import PromptAnswers
from nearstep.evaluation.reading import read_answers
from nearstep.evaluation.text_model import TextModel
from nearstep.models.dtypes import DTYPES
from nearstep.rewards.ask import OnError, SourceCaller
from nearstep.rewards.batch import Completion, RewardBatch
from nearstep.rewards.build import NO_POLICY, RewardModelOptions, load_sources, on_error, reward_specs
from nearstep.rewards.combine import Rewards
from nearstep.rewards.decoding import reward_batch
from nearstep.rewards.functions import FunctionReward, Prepares
from nearstep.rewards.loading import load_function
from nearstep.rewards.model import ModelReward
from nearstep.rewards.reading import EpisodeReader, UnreadableError
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.values import total
from nearstep.scale.torch_backend import torch_backend
from nearstep.types import PromptInput, Prompts

BETA = 0.1  # of the implicit reward β·(log π − log π_ref), as DPO's default has it


@dataclass(frozen=True)
class AnswerScores:
    """The reward of each answer, NaN where there is none, and its parts."""

    totals: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class TextPair:
    """A prompt and an answer to it, which is text or messages."""

    prompt: PromptInput
    answer: PromptInput
    columns: dict[str, object]


class RewardScorer:
    """The rewards that the settings name. Reward models read texts; the ids of answers where they share a tokenizer."""

    def __init__(self, config: EvalConfig, tokenizer: PreTrainedTokenizerBase, columns: Collection[str]) -> None:
        """Load them. Raises ConfigError, ModelError or RewardError for what cannot score."""
        self._size, self._tokenizer = config.batch_size, tokenizer
        options = RewardModelOptions(
            DTYPES[config.dtype],
            config.trust_remote_code,
            config.bf16,
            config.max_tokens_per_microbatch,
            torch_backend(use_cpu=config.use_cpu).place,
            config.seed,
            config.chat_template_kwargs,
        )
        sources = load_sources(config, reward_specs(config, columns=columns), tokenizer, options)
        as_texts = [each.for_policy(NO_POLICY) if isinstance(each, ModelReward) else each for each in sources]
        weights, policy = config.reward_weights, on_error(config)
        self._of_ids = Rewards(sources, tokenizer, weights=weights, on_error=policy)
        self._of_texts = Rewards(as_texts, tokenizer, weights=weights, on_error=policy)

    @property
    def names(self) -> list[str]:
        """What the rewards are called."""
        return self._of_ids.names

    def answers(self, answers: PromptAnswers) -> AnswerScores:
        """The rewards of answers, as training would give them."""
        totals: list[float] = []
        parts: dict[str, list[float]] = {name: [] for name in self.names}
        for batch in answers.batches(self._size):
            rollout = batch.rollout
            scores = self._of_ids(batch.prompts, rollout)
            totals += scores.with_dense(scores.total, rollout).tolist()
            for name, values in scores.parts.items():
                parts[name] += values.tolist()
        return AnswerScores(totals, parts)

    def texts(self, pairs: Sequence[TextPair]) -> list[float]:
        """The rewards of texts that no policy wrote, all of them finished; NaN where there is none."""
        totals: list[float] = []
        for start in range(0, len(pairs), self._size):
            some = pairs[start : start + self._size]
            totals += self._of_texts.combine(self._batch(some, start)).totals
        return totals

    def close(self) -> None:
        """End worker processes."""
        self._of_ids.close()

    def _batch(self, pairs: Sequence[TextPair], first: int) -> RewardBatch:
        ids = [self._tokenizer(_text(pair.answer), add_special_tokens=False)["input_ids"] for pair in pairs]
        names = dict.fromkeys(name for pair in pairs for name in pair.columns)
        return RewardBatch(
            prompts=[pair.prompt for pair in pairs],
            completions=[_completion(pair) for pair in pairs],
            prompt_ids=[self._tokenizer(_text(pair.prompt), verbose=False)["input_ids"] for pair in pairs],
            completion_ids=ids,
            finished=[True] * len(pairs),
            columns={name: [pair.columns.get(name) for pair in pairs] for name in names},
            episodes=list(range(first, first + len(pairs))),
        )


def rule_values(spec: str, answers: PromptAnswers, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """What a reward function says of each answer, NaN where it does not apply. Raises RewardError where it fails."""
    function = load_function(spec)
    source = FunctionReward(function)
    source.check(list(answers.prompts.columns))
    if isinstance(function, Prepares):
        function.prepare()
    batch = reward_batch(answers.prompts, answers.rollout, tokenizer)
    [result] = SourceCaller([source], [source.name], OnError(), EventLoop()).ask(batch)
    return [math.nan if isinstance(value, RewardError) else total(value) for value in result.values]


@dataclass(frozen=True)
class OwnScorer:
    """A model's log-probability of a text, or with a reference the implicit reward β·(log π − log π_ref)."""

    model: TextModel
    reference: TextModel | None
    config: EvalConfig

    @property
    def name(self) -> str:
        """What the scores are, in words."""
        if self.reference is None:
            return "log-probability under the model"
        return f"implicit reward, {BETA:g} · (log π − log π_ref)"

    def texts(self, pairs: Sequence[TextPair]) -> list[float]:
        """The scores of texts, their ends counted; NaN for one that is too long or that the template refuses."""
        reader = EpisodeReader(self.model.tokenizer, self.config.chat_template_kwargs)
        scores, rows = [math.nan] * len(pairs), []
        limits = [m.limits.positions for m in (self.model, self.reference) if m is not None]
        most = min((limit for limit in [self.config.max_length, *limits] if limit is not None), default=None)
        for number, pair in enumerate(pairs):
            try:
                ids = reader.read(pair.prompt, _completion(pair), finished=True)
            except UnreadableError:
                continue
            before, said = reader.split(pair.prompt, ids)
            before, said = (before, said) if before else (said[:1], said[1:])  # nothing foretells a first token
            if said and (most is None or len(ids) <= most):
                rows.append((number, before, said))
        prompts = Prompts([before for _, before, _ in rows], [""] * len(rows), {}, list(range(len(rows))))
        answers = PromptAnswers(
            prompts, [said for *_, said in rows], [True] * len(rows), [""] * len(rows), [0] * len(rows)
        )
        found = self._log_probs(self.model, answers)
        if self.reference is not None:
            found = [BETA * (a - b) for a, b in zip(found, self._log_probs(self.reference, answers), strict=True)]
        for (number, *_), score in zip(rows, found, strict=True):
            scores[number] = score
        return scores

    def _log_probs(self, model: TextModel, answers: PromptAnswers) -> list[float]:
        if not len(answers):
            return []
        return read_answers(model.policy, answers, self.config.max_tokens_per_microbatch).logprob


def _completion(pair: TextPair) -> Completion:
    """An answer in the form of its prompt."""
    if isinstance(pair.answer, str) and not isinstance(pair.prompt, str):
        return [{"role": "assistant", "content": pair.answer}]
    return pair.answer


def _text(value: PromptInput) -> str:
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)
