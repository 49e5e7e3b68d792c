"""What vLLM is asked for each row, and how its answers become a rollout; the same in process and for a server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream_seed
from nearstep.rollout.engine import GenerationSettings, rollout_of_rows
from nearstep.types import Prompts, Rollout, TopLogprobs

NEVER = -100.0  # added to a logit: no token has so much more than another
LEAST = -9999.0  # what a server writes for minus infinity, which JSON has not


@dataclass(frozen=True)
class RowRequest:
    """One row: its prompt and how it is sampled. Nothing is left to defaults of a server or a model folder."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...]
    top_tokens: int
    allowed: tuple[int, ...] | None = None  # ids that may be sampled, where those are fewer than the others
    never: tuple[int, ...] = ()  # ids that are no tokens


@dataclass(frozen=True)
class SampledRow:
    """One row as vLLM sampled it; at every token the ids and log-probs of the `top_tokens`, most probable first."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    top_ids: Sequence[Sequence[int]] = ()
    top_logprobs: Sequence[Sequence[float]] = ()


def row_requests(prompts: Prompts, settings: GenerationSettings, rows: int) -> list[RowRequest]:
    """What is asked for each row of `prompts`, of a model with `rows` logits."""
    limits = settings.limits or (settings.response_length,) * len(prompts)
    known = rows if settings.vocabulary is None else min(settings.vocabulary, rows)
    few = known < rows - known
    sampling = settings.sampling
    return [
        RowRequest(
            prompt=tuple(ids),
            max_tokens=limit,
            seed=stream_seed(settings.seed, "sampling", episode),
            temperature=0.0 if settings.greedy else sampling.temperature,
            top_p=1.0 if settings.greedy else sampling.top_p,
            top_k=0 if settings.greedy else sampling.top_k,
            stop_ids=settings.stop_ids,
            top_tokens=settings.top_tokens,
            allowed=tuple(range(known)) if few else None,
            never=() if few else tuple(range(known, rows)),
        )
        for ids, episode, limit in zip(prompts.ids, prompts.episodes, limits, strict=True)
    ]


def with_sampled_last(
    ids: Sequence[int], logprobs: Sequence[float], sampled: int, logprob: float, top_tokens: int
) -> tuple[list[int], list[float]]:
    """The `top_tokens` most probable tokens; the sampled one in the place of the last where it is none of them.

    `ids` come in order. Where vLLM gives fewer (top_k keeps fewer), any others fill up, with minus infinity.
    """
    top, values = list(ids[:top_tokens]), list(logprobs[:top_tokens])
    if len(top) < top_tokens:
        others = (token for token in range(top_tokens + len(top) + 1) if token not in top and token != sampled)
        while len(top) < top_tokens:
            top.append(next(others))
            values.append(-torch.inf)
    if sampled not in top:
        top[-1], values[-1] = sampled, logprob
    return top, values


def rollout_of_answers(
    prompts: Prompts,
    settings: GenerationSettings,
    answers: Sequence[SampledRow],
    version: int,
    device: torch.device,
) -> Rollout:
    """The rollout that the answers are. Raises TrainingError for an answer that ends before it may."""
    limits = settings.limits or (settings.response_length,) * len(prompts)
    finished = [bool(answer.ids) and answer.ids[-1] in settings.stop_ids for answer in answers]
    for row, (answer, ended, limit) in enumerate(zip(answers, finished, limits, strict=True)):
        if not ended and len(answer.ids) < limit:
            raise TrainingError(
                f"vLLM ended row {row} (episode {prompts.episodes[row]}) after {len(answer.ids)} of {limit} tokens, at "
                f"no stop token of {list(settings.stop_ids)}. Prompt and response must fit into its max_model_len, and "
                "it may add no stop tokens of its own: start a server by nearstep serve-engine"
            )
    logprobs = [torch.tensor(answer.logprobs, dtype=torch.float32, device=device) for answer in answers]
    rollout = rollout_of_rows(prompts, [answer.ids for answer in answers], logprobs, finished, version)
    if settings.top_tokens == 0:
        return rollout
    top = TopLogprobs(
        torch.tensor([ids for answer in answers for ids in answer.top_ids], dtype=torch.long, device=device),
        torch.tensor([line for answer in answers for line in answer.top_logprobs], dtype=torch.float32, device=device),
    )
    return replace(rollout, top=top)
