"""Finished rows of the generation process as a Rollout, and as tensors by name that a checkpoint can hold."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nearstep.common.errors import CheckpointError
from nearstep.rollout.ahead.messages import FinishedRow
from nearstep.types import Rollout, TopLogprobs

TENSORS = ("tokens", "is_action", "logprobs", "versions", "top_ids", "top_logprobs")


def rollout_of(rows: Sequence[FinishedRow], device: torch.device) -> Rollout:
    """Rows back to back, on a device."""
    tops = [(row.top_ids, row.top_logprobs) for row in rows if row.top_ids is not None and row.top_logprobs is not None]
    top = None
    if tops:
        ids, logprobs = zip(*tops, strict=True)
        top = TopLogprobs(torch.cat(ids).to(device), torch.cat(logprobs).to(device))
    return Rollout(
        tokens=torch.cat([row.tokens for row in rows]).to(device),
        is_action=torch.cat([row.is_action for row in rows]).to(device),
        row_lengths=torch.tensor([len(row.tokens) for row in rows], device=device),
        logprobs=torch.cat([row.logprobs for row in rows]).to(device),
        finished=torch.tensor([row.finished for row in rows], device=device),
        policy_version=torch.stack([row.versions.min() for row in rows]).to(device),
        top=top,
        action_versions=torch.cat([row.versions for row in rows]).to(device),
    )


def as_tensors(rows: Sequence[FinishedRow]) -> dict[str, Tensor]:
    """Rows as tensors, `EPISODE.what`."""
    found: dict[str, Tensor] = {}
    for row in rows:
        found |= {f"{row.episode}.{name}": value for name in TENSORS if (value := vars(row)[name]) is not None}
        found[f"{row.episode}.finished"] = torch.tensor(row.finished)
    return found


def from_tensors(tensors: Mapping[str, Tensor]) -> Iterator[FinishedRow]:
    """The inverse of `as_tensors`. Raises CheckpointError where a row is not whole."""
    for episode in sorted({int(name.partition(".")[0]) for name in tensors}):
        own = {name: tensors.get(f"{episode}.{name}") for name in (*TENSORS, "finished")}
        finished, tokens, is_action = own["finished"], own["tokens"], own["is_action"]
        logprobs, versions = own["logprobs"], own["versions"]
        if finished is None or tokens is None or is_action is None or logprobs is None or versions is None:
            raise CheckpointError(f"the finished row of episode {episode} is not whole")
        yield FinishedRow(
            episode, bool(finished), tokens, is_action, logprobs, versions, own["top_ids"], own["top_logprobs"]
        )
