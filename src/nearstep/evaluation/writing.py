"""How a model writes completions of prompts: by the engine of training, with the same sampling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nearstep.config.generating import DecodingSettings
from nearstep.data.mix import PromptMix
from nearstep.data.prompts import PromptSet
from nearstep.evaluation.text_model import TextModel
from nearstep.models.distribution import Sampling
from nearstep.models.stop_tokens import StopTokens, stop_tokens
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts, Rollout

CALLS_OF = 4  # batches that one call of the engine generates, so that waiting rows take the places of finished ones


@dataclass(frozen=True)
class WrittenBatch:
    """Some completions in a row: `numbers` are their prompts, `samples` which of a prompt's completions they are."""

    numbers: list[int]
    samples: list[int]
    prompts: Prompts
    rollout: Rollout


@dataclass(frozen=True)
class CompletionWriter:
    """A model with the settings under which it writes. A completion depends on seed, prompt and its number alone."""

    model: TextModel
    settings: DecodingSettings
    stops: StopTokens

    @staticmethod
    def of(model: TextModel, settings: DecodingSettings, template_kwargs: object = None) -> "CompletionWriter":
        """Find out what ends a completion. Raises ConfigError where nothing does, or for an end that cannot be."""
        stops = stop_tokens(
            model.tokenizer,
            vocab_size=model.limits.rows,
            model=model.ends,
            stop_token=settings.stop_token,
            stop_token_id=settings.stop_token_id,
            template_kwargs=template_kwargs,  # type: ignore[arg-type]
        )
        return CompletionWriter(model, settings, stops)

    @property
    def how(self) -> str:
        """How tokens are chosen, in words."""
        settings = self.settings
        if not settings.samples:
            return "the most probable token each time"
        cuts = [f"top_p {settings.top_p:g}"] * (settings.top_p < 1) + [f"top_k {settings.top_k}"] * (settings.top_k > 0)
        return ", ".join([f"sampled at temperature {self.sampling.temperature:g}", *cuts, f"seed {settings.seed}"])

    @property
    def sampling(self) -> Sampling:
        """The distribution that is sampled."""
        settings = self.settings
        if not settings.samples:
            return Sampling()
        temperature = 1.0 if settings.temperature is None else settings.temperature
        return Sampling(temperature, settings.top_p, settings.top_k)

    def write(self, prompts: PromptSet, *, after: int = 0) -> Iterator[WrittenBatch]:
        """Every completion of every prompt, the first `after` left out; some at a time, in order."""
        settings, count = self.settings, self.settings.num_generations
        step = CALLS_OF * settings.batch_size
        for start in range(after, len(prompts) * count, step):
            rows = range(start, min(start + step, len(prompts) * count))
            numbers = [row // count for row in rows]
            samples = [row % count for row in rows]
            episodes = [
                int(prompts.table_rows[number]) * count + sample
                for number, sample in zip(numbers, samples, strict=True)
            ]
            taken = PromptMix((prompts,)).take(numbers, episodes)
            yield WrittenBatch(numbers, samples, taken, self._play(taken))

    def _play(self, prompts: Prompts) -> Rollout:
        settings = self.settings
        generation = GenerationSettings(
            sampling=self.sampling,
            response_length=settings.response_length,
            stop_ids=self.stops.ids,
            seed=settings.seed,
            greedy=not settings.samples,
            vocabulary=self.model.limits.rows,
        )
        engine = TransformersEngine(
            EngineSettings(self._rows_at_a_time(prompts.ids), settings.max_tokens_per_microbatch)
        )
        engine.load(self.model.policy, 0)
        return play(engine, prompts, generation).last_segments()

    def _rows_at_a_time(self, prompts: Sequence[list[int]]) -> int:
        """As many rows as have room for the longest of them within max_tokens_per_microbatch, one at least."""
        longest = max(map(len, prompts)) + self.settings.response_length
        return max(1, min(self.settings.batch_size, self.settings.max_tokens_per_microbatch // longest))
