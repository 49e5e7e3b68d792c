"""How a reward model of any family reads an episode: the same ids where tokenizers agree, else text."""

import copy
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import RewardError
from nearstep.common.template_kwargs import COLUMN, row_kwargs
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.reading import EpisodeReader, UnreadableError


@runtime_checkable
class Scorer(Protocol):
    """The reward model itself, whatever holds it."""

    def score(self, rows: list[list[int]]) -> Float[Tensor, " rows"]:
        """One score per row of token ids, read at the row's own last token."""


class ModelReward:
    """A reward model as a source of rewards.

    Where its tokenizer is the policy's, it reads the very ids of the rollout. Otherwise it reads text: prompt and
    response tokenised anew, or the conversation under its own chat template (see `EpisodeReader`).
    """

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        *,
        tokenizer: PreTrainedTokenizerBase,
        policy: TokenizerIdentity,
        vocabulary_size: int,
        max_length: int | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        """`policy` is the tokenizer that wrote the ids of the rollout; `vocabulary_size` and `max_length` (in tokens,
        None for no limit) are those of the model in `scorer`.
        """
        self.name = name
        self._scorer = scorer
        self._vocabulary_size = vocabulary_size
        self._max_length = max_length
        self._identity = TokenizerIdentity.of(tokenizer)
        self._policy = policy
        self._reader = EpisodeReader(tokenizer, template_kwargs)

    def for_policy(self, policy: TokenizerIdentity) -> "ModelReward":
        """The same model, for rollouts of a policy with another tokenizer."""
        other = copy.copy(self)
        other._policy = policy
        return other

    def score(self, batch: RewardBatch) -> Answer:
        """Score every row; raises a RewardError naming a row that the model cannot read."""
        rows = [self._read(batch, row) for row in range(len(batch))]
        for row, ids in enumerate(rows):
            self._check(ids, batch.place(row))
        return Answer(self._scorer.score(rows))

    def _read(self, batch: RewardBatch, row: int) -> list[int]:
        """The ids under which the model reads a row."""
        prompt, completion = batch.prompts[row], batch.completions[row]
        same_tokens = self._identity.tokens == self._policy.tokens
        # A missing template does not differ: the ids under the policy's template are then all there is to read.
        same_template = self._identity.chat_template in (None, self._policy.chat_template)
        if same_tokens and (isinstance(prompt, str) or same_template):
            return batch.prompt_ids[row] + batch.completion_ids[row]
        try:
            kwargs = row_kwargs(batch.columns[COLUMN][row]) if COLUMN in batch.columns else {}
        except ValueError as error:
            raise RewardError(f"{COLUMN} of {batch.place(row)} must be {error}") from error
        try:
            return self._reader.of_row(kwargs).read(prompt, completion, finished=batch.finished[row])
        except UnreadableError as error:
            raise RewardError(f"reward model {self.name!r} cannot read {batch.place(row)}: {error}") from error

    def _check(self, ids: list[int], place: str) -> None:
        if not ids:
            raise RewardError(
                f"reward model {self.name!r} finds nothing to read in {place}: prompt and response are empty."
            )
        if self._max_length is not None and len(ids) > self._max_length:
            raise RewardError(
                f"reward model {self.name!r} reads at most {self._max_length} tokens, but {place} has {len(ids)}: "
                "lower max_prompt_length or response_length, or take a reward model that reads more."
            )
        if max(ids) >= self._vocabulary_size:
            raise RewardError(
                f"reward model {self.name!r} knows {self._vocabulary_size} tokens, but {place} contains token "
                f"{max(ids)}: its tokenizer is not the one that the model was trained with, or its embedding was not "
                "resized for added tokens (model.resize_token_embeddings(len(tokenizer)))."
            )
