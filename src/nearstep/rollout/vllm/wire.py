"""What goes over HTTP for a row: the request of /v1/completions by token ids, and its answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nearstep.common.errors import TrainingError, shorten
from nearstep.rollout.vllm.requests import LEAST, NEVER, RowRequest, SampledRow, with_sampled_last

NAMED = "token_id:"  # how a token is written where ids are asked for


def completion_body(request: RowRequest, model: str) -> dict[str, Any]:
    """The body. What a model folder or a server has defaults for is said, so that none of them counts."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(request.stop_ids),
        "ignore_eos": True,
        "logprobs": request.top_tokens,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
    }
    if request.allowed is not None:
        body["allowed_token_ids"] = list(request.allowed)
    if request.never:
        body["logit_bias"] = {str(token): NEVER for token in request.never}
    return body


def read_completion(answer: Any, request: RowRequest, what: str) -> SampledRow:
    """The row in an answer. Raises TrainingError, which begins with `what`, for anything else."""
    try:
        (choice,) = answer["choices"]
        ids, logprobs = choice["token_ids"], choice["logprobs"]
        sampled = [_logprob(value) for value in logprobs["token_logprobs"]]
        if not ids or len(sampled) != len(ids) or any(type(token) is not int for token in ids):
            raise ValueError(f"{len(ids)} token ids with {len(sampled)} log-probs")
        if request.top_tokens == 0:
            return SampledRow(ids, sampled)
        tops = [
            _top(line, token, value, request.top_tokens)
            for line, token, value in zip(logprobs["top_logprobs"], ids, sampled, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"{what}: the answer is no completion with token ids and log-probs ({type(error).__name__}: "
            f"{shorten(error)}): {shorten(answer)}. It must be a server of vLLM"
        ) from None
    return SampledRow(ids, sampled, [ids for ids, _ in tops], [values for _, values in tops])


def _logprob(value: float) -> float:
    return -torch.inf if value <= LEAST else float(value)


def _top(line: Mapping[str, float], sampled: int, logprob: float, top_tokens: int) -> tuple[list[int], list[float]]:
    """The most probable tokens of one place. A server may give the sampled one beside them."""
    found = {int(name.removeprefix(NAMED)): _logprob(value) for name, value in line.items()}
    ordered: Sequence[int] = sorted(found, key=lambda token: -found[token])
    return with_sampled_last(ordered, [found[token] for token in ordered], sampled, logprob, top_tokens)
