"""How a model reads answers: log-probs of their tokens, entropies, and the KL to another model, over the vocabulary."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import sum_by_row
from nearstep.evaluation.answers import PromptAnswers
from nearstep.models.distribution import Sampling, tempered
from nearstep.models.forward.forward import rollout_logprobs, states_of
from nearstep.models.forward.layout import RowTokens
from nearstep.models.roles import Policy
from nearstep.types import Rollout, row_groups

LOGITS_HELD = 2**22  # of each of two models at a time


@dataclass(frozen=True)
class RowSums:
    """Sums over the tokens of each answer, in nats, and how many tokens it has."""

    tokens: list[int]
    logprob: list[float]
    entropy: list[float]


@torch.no_grad()
def read_answers(policy: Policy, answers: PromptAnswers, max_tokens: int, temperature: float = 1.0) -> RowSums:
    """Log-probs and entropies of every answer under the model's own distribution, sharpened by `temperature`."""
    sums = RowSums([], [], [])
    for rollout in _groups(answers, max_tokens, policy.device):
        found = rollout_logprobs(policy, rollout, Sampling(temperature))
        counts = rollout.action_counts
        sums.tokens.extend(counts.tolist())
        sums.logprob.extend(sum_by_row(found.sampled.double(), counts).tolist())
        sums.entropy.extend(sum_by_row(found.entropy.double(), counts).tolist())
    return sums


@torch.no_grad()
def kl_sums(
    policy: Policy, reference: Policy, answers: PromptAnswers, max_tokens: int, temperature: float = 1.0
) -> list[float]:
    """Σ KL(policy ‖ reference) over the tokens of each answer, each over the whole vocabulary, in nats."""
    found: list[float] = []
    for rollout in _groups(answers, max_tokens, policy.device):
        rows, read = RowTokens.of(rollout), rollout.action_positions - 1
        pair = [(role, states_of(role, rows, read)) for role in (policy, reference)]
        kls = torch.cat([_kl(pair, places, temperature) for places in _chunks(len(read), policy.head.vocabulary)])
        found += sum_by_row(kls.double(), rollout.action_counts).tolist()
    return found


def _kl(pair: Sequence[tuple[Policy, Tensor]], places: slice, temperature: float) -> Float[Tensor, " places"]:
    now, reference = (
        tempered(wide(role.head.logits(states[places])), Sampling(temperature)).log_softmax(-1) for role, states in pair
    )
    return (now.exp() * (now - reference)).sum(-1)


def _chunks(count: int, vocabulary: int) -> Iterator[slice]:
    size = max(16, LOGITS_HELD // vocabulary)
    yield from (slice(start, start + size) for start in range(0, max(count, 1), size))


def _groups(answers: PromptAnswers, max_tokens: int, device: torch.device) -> Iterator[Rollout]:
    """Rows as many as fit into a forward pass, in order."""
    lengths = [len(ids) + len(said) for ids, said in zip(answers.prompts.ids, answers.said, strict=True)]
    for rows in row_groups(lengths, max_tokens, len(lengths)):
        rollout = answers.select(rows).rollout
        yield Rollout(**{name: value.to(device) for name, value in vars(rollout).items() if value is not None})
