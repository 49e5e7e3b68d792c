"""How the demo's two small trainings read a post once with all its summaries."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.demo.world import Summary

POOL = 16  # batches that are sorted by length together


@dataclass(frozen=True)
class TokenGroup:
    """The token ids of one prompt and of several completions of it."""

    prompt: list[int]
    completions: list[list[int]]

    @property
    def tokens(self) -> int:
        """Length of the row that holds them all."""
        return len(self.prompt) + sum(map(len, self.completions))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], summaries: Sequence[Sequence[Summary]]
) -> list[TokenGroup]:
    """One group for every prompt; a finished summary ends with EOS."""
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    groups = []
    for prompt, several in zip(prompt_ids, summaries, strict=True):
        texts = tokenizer([summary.text for summary in several])["input_ids"]
        ends = [[tokenizer.eos_token_id] if summary.finished else [] for summary in several]
        groups.append(TokenGroup(prompt, [text + end for text, end in zip(texts, ends, strict=True)]))
    return groups


@dataclass(frozen=True)
class TokenBatch:
    """A row for every group: the prompt, then its completions, each of which sees the prompt and itself only."""

    ids: Int[Tensor, "rows width"]
    positions: Int[Tensor, "rows width"]  # every completion begins where the prompt ends
    mask: Bool[Tensor, "rows 1 width width"]
    targets: Int[Tensor, " actions"]  # all tokens of all completions
    sources: Int[Tensor, " actions"]  # for each of them, where in the flattened rows its predecessor stands


def pack(groups: Sequence[TokenGroup]) -> TokenBatch:
    """The groups as one batch, padded on the right."""
    width = max(group.tokens for group in groups)
    ids, positions, segments = (torch.zeros(len(groups), width, dtype=torch.long) for _ in range(3))
    sources: list[int] = []
    for row, group in enumerate(groups):
        start, prompt_end = row * width, len(group.prompt)
        ends = list(accumulate(map(len, group.completions), initial=prompt_end))
        ids[row, : ends[-1]] = torch.tensor(sum(group.completions, group.prompt))
        positions[row, :prompt_end] = torch.arange(prompt_end)
        for number, (begin, end) in enumerate(pairwise(ends), start=1):
            segments[row, begin:end] = number
            positions[row, begin:end] = torch.arange(prompt_end, prompt_end + end - begin)
            sources += [start + prompt_end - 1, *range(start + begin, start + end - 1)]
    same = segments[:, :, None] == segments[:, None, :]
    visible = (same | (segments == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    targets = [token for group in groups for completion in group.completions for token in completion]
    return TokenBatch(ids, positions, visible[:, None], torch.tensor(targets), torch.tensor(sources))


def hidden_states(model: PreTrainedModel, batch: TokenBatch) -> Float[Tensor, "positions hidden"]:
    """The trunk's output at every place of the flattened rows."""
    output = model.base_model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def batches_by_length(lengths: Sequence[int], batch_rows: int, rng: random.Random) -> Iterator[list[int]]:
    """Row numbers of full batches in random order, the rows of a batch of similar length."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    size = POOL * batch_rows
    pools = [sorted(order[i : i + size], key=lengths.__getitem__) for i in range(0, len(order), size)]
    batches = [pool[i : i + batch_rows] for pool in pools for i in range(0, len(pool) - batch_rows + 1, batch_rows)]
    rng.shuffle(batches)
    yield from batches


class Descent:
    """AdamW over `steps` steps, with a short warm-up and a cosine decay to zero."""

    def __init__(self, model: PreTrainedModel, steps: int, learning_rate: float) -> None:
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        warmup = max(1, steps // 12)
        self._course = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / max(1, steps))) / 2,
        )

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, its norm cut to 1."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._course.step()
