"""How likely a causal language model finds texts after other texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from nearstep.common.errors import ModelError, shorten
from nearstep.models.distribution import Sampling
from nearstep.models.forward.action_logprobs import action_logprobs
from nearstep.models.forward.forward import row_states
from nearstep.models.limits import Limits
from nearstep.models.roles import Policy, make_policy
from nearstep.rewards.builtin.frozen_models import FrozenModel
from nearstep.types import row_groups


@dataclass(frozen=True)
class LanguageModel:
    """A causal model of transformers, loaded when it first reads."""

    source: FrozenModel
    batch_tokens: int

    @torch.no_grad()
    def mean_logprobs(self, prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
        """The mean log-probability, in nats, of the tokens of each text after its prompt; no text may be empty.

        Raises ModelError where a prompt cannot be read, or prompt and text are longer than the model reads.
        """
        if not texts:
            return []
        before = [self._read_prompt(prompt) for prompt in prompts]
        after = [list(self.source.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        lengths = [len(a) + len(b) for a, b in zip(before, after, strict=True)]
        self._check(lengths)
        found = []
        for group in row_groups(lengths, self.batch_tokens, len(texts)):
            found += self._group(before[group.start : group.stop], after[group.start : group.stop])
        return found

    def _group(self, before: Sequence[list[int]], after: Sequence[list[int]]) -> list[float]:
        rows = list(zip(before, after, strict=True))
        tokens = torch.tensor([token for prompt, text in rows for token in prompt + text], device=self._place)
        is_text = [of_text for prompt, text in rows for of_text in [False] * len(prompt) + [True] * len(text)]
        places = torch.tensor(is_text, device=self._place).nonzero()[:, 0]
        lengths = torch.tensor([len(prompt) + len(text) for prompt, text in rows], device=self._place)
        states = row_states(self.policy, tokens, lengths)
        logprobs = action_logprobs(self.policy.head, states[places - 1], tokens[places], Sampling()).sampled
        return [float(of_text.mean()) for of_text in logprobs.cpu().split([len(b) for b in after])]

    def _read_prompt(self, prompt: object) -> list[int]:
        source = self.source
        if isinstance(prompt, str):
            return list(source.tokenizer(prompt)["input_ids"]) or self._start
        if source.tokenizer.chat_template is None:
            raise ModelError(
                f"{source.role}: the tokenizer of {source.name!r} has no chat template, but a prompt is a "
                f"conversation: {shorten(prompt)}. Take a model that was trained on conversations."
            )
        return list(source.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))

    @property
    def _start(self) -> list[int]:
        """What stands before a text without a prompt: the first token of a text needs something before it."""
        source = self.source
        for token in (source.tokenizer.bos_token_id, source.tokenizer.eos_token_id):
            if token is not None:
                return [token]
        raise ModelError(f"{source.role}: a prompt is empty, and {source.name!r} has neither a BOS nor an EOS token.")

    def _check(self, lengths: Sequence[int]) -> None:
        source = self.source
        positions = Limits.of(source.config).positions
        if positions is not None and max(lengths) > positions:
            raise ModelError(
                f"{source.role}: {source.name!r} reads at most {positions} tokens, but a prompt and its completion "
                f"have {max(lengths)}: lower max_prompt_length or response_length, or take a model that reads more."
            )

    @cached_property
    def policy(self) -> Policy:
        """The model, frozen, ready to read packed rows."""
        return make_policy(self.source.model, role=self.source.role)

    @property
    def _place(self) -> torch.device:
        return next(self.policy.model.parameters()).device
