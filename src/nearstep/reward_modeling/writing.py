"""How the model writes the texts on which rewards then score: answers to prompts, or texts from nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.distribution import Sampling
from nearstep.models.limits import Limits
from nearstep.models.load import load_policy
from nearstep.models.roles import make_policy, transformers_model
from nearstep.models.stop_tokens import ModelEnds, stop_tokens
from nearstep.models.vocabulary import known_ids
from nearstep.rewards.decoding import completion_text
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.scale.backend import Backend
from nearstep.types import PromptInput, Prompts

MAX_TOKENS = 16384  # of prompts in one forward pass


@dataclass(frozen=True)
class WrittenText:
    """A text that the model wrote, without its end, and the very ids of prompt and text, with it."""

    text: str
    finished: bool
    prompt_ids: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Writer:
    """The model as it is before the training, in the role of a policy."""

    config: RewardConfig
    model: nn.Module | str
    tokenizer: PreTrainedTokenizerBase
    family: PreTrainedConfig
    limits: Limits
    dtype: torch.dtype
    backend: Backend

    def answer(self, prompts: Sequence[list[int]], shown: Sequence[PromptInput]) -> list[list[WrittenText]]:
        """`num_generations` texts for every prompt, given as ids. Raises ConfigError where there is no room."""
        longest, room = max(map(len, prompts)), self.limits.positions
        if room is not None and longest + self.config.response_length > room:
            raise ConfigError(
                f"the model has {room} positions: the longest prompt, of {longest} tokens, and response_length = "
                f"{self.config.response_length} together are more"
            )
        count = self.config.num_generations
        repeated = [number for number in range(len(prompts)) for _ in range(count)]
        texts = self._write([prompts[number] for number in repeated], [shown[number] for number in repeated])
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def from_nothing(self) -> list[WrittenText]:
        """`num_texts` texts that follow the token with which the tokenizer begins, or else ends, a text."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        if start is None:
            raise ConfigError("no data, and the tokenizer has neither BOS nor EOS to begin a text with: pass prompts")
        written = self._write([[start]] * self.config.num_texts, [""] * self.config.num_texts)
        # EOS opens no text: a text without BOS begins with its first word.
        return (
            written if self.tokenizer.bos_token_id is not None else [replace(each, prompt_ids=[]) for each in written]
        )

    def _write(self, prompts: list[list[int]], shown: list[PromptInput]) -> list[WrittenText]:
        """One text for each prompt. Every process writes all of them: each text has a random stream of its own."""
        config, policy = self.config, self.model
        ends = ModelEnds.of(policy, self.family)
        stops = stop_tokens(self.tokenizer, vocab_size=self.limits.rows, model=ends, needed=False)
        if isinstance(policy, str):
            policy = load_policy(policy, role="model", dtype=self.dtype, trust=config.trust)
        elif transformers_model(policy, "model").get_output_embeddings() is None:
            raise ConfigError("the model has no output layer for tokens, so it cannot write texts: pass some to score")
        settings = GenerationSettings(Sampling(config.temperature), config.response_length, stops.ids, config.seed)
        engine = TransformersEngine(EngineSettings(config.per_device_eval_batch_size, MAX_TOKENS))
        known = known_ids(self.tokenizer)
        engine.load(make_policy(self.backend.place(policy), autocast=config.bf16, vocabulary=known), 0)
        rollout = play(engine, Prompts(prompts, shown, {}, list(range(len(prompts)))), settings)
        rows = zip(prompts, rollout.completion_ids(), rollout.finished.tolist(), strict=True)
        return [
            WrittenText(completion_text(ids, finished, self.tokenizer), finished, prompt, ids)
            for prompt, ids, finished in rows
        ]
