"""What is measured of responses as texts, and what their scores go with: the signs by which a hacked reward is known."""

from collections import Counter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.ragged import HASH_MULTIPLIER, places_in_row, row_numbers, sum_by_row
from nearstep.metrics import Correlation, Mean, Metric
from nearstep.types import Experience, Rollout

RUN_TOKENS = 3  # of a run of tokens that is looked for a second time


def response_metrics(rollout: Rollout) -> dict[str, Metric]:
    """How much responses repeat themselves and one another, over the rows of this process."""
    copies = Counter(map(tuple, rollout.completion_ids()))
    in_row_before = torch.tensor([copies[tuple(ids)] > 1 for ids in rollout.completion_ids()])
    return {
        "response/repeated": Mean.of(repeated_runs(rollout.actions, rollout.action_counts).float()),
        "response/duplicates": Mean.of(in_row_before.float()),
    }


def repeated_runs(actions: Int[Tensor, " actions"], lengths: Int[Tensor, " rows"]) -> Bool[Tensor, " runs"]:
    """Of every run of three tokens of a row, whether the row has the same run earlier."""
    rows, begins = row_numbers(lengths), places_in_row(lengths) + RUN_TOKENS <= lengths[row_numbers(lengths)]
    runs = rows
    for offset in range(RUN_TOKENS):
        runs = runs * HASH_MULTIPLIER + actions.roll(-offset)
    _, order = runs[begins].sort(stable=True)
    ordered = runs[begins][order]
    again = torch.zeros_like(order, dtype=torch.bool)
    again[order[1:]] = ordered[1:] == ordered[:-1]
    return again


def score_metrics(
    experience: Experience, scores: Float[Tensor, " rows"], scored: Bool[Tensor, " rows"]
) -> dict[str, Metric]:
    """Correlation, over scored rows, of the score with the length, with an end of its own, and with the likelihood."""
    rollout = experience.rollout
    counts = rollout.action_counts
    reference = rollout.logprobs if experience.ref_logprobs is None else experience.ref_logprobs
    likelihood = sum_by_row(reference, counts) / counts.clamp(min=1)
    beside = {"length": counts.float(), "ending": rollout.finished.float(), "likelihood": likelihood}
    return {
        f"objective/score_{name}_correlation": Correlation.of(scores[scored], values[scored])
        for name, values in beside.items()
    }
