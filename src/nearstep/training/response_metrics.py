"""What is measured of responses as texts, and what their scores go with: the signs of a hacked reward."""

from collections import defaultdict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.ragged import HASH_MULTIPLIER, places_in_row, row_numbers, sum_by_row
from nearstep.metrics import Correlation, Max, Mean, Metric
from nearstep.types import Experience, Rollout

RUN_TOKENS = 3  # of a run of tokens that is looked for a second time
TOKEN_ROWS = 24  # scored rows from which on one token's correlation with the score is no chance
ROWS_WITH_TOKEN = 4
TOKENS = 512  # in most frequent use, that are looked at


def response_metrics(rollout: Rollout) -> dict[str, Metric]:
    """How much responses repeat themselves and the answers to other prompts, over the rows of this process."""
    responses = [tuple(ids) for ids in rollout.completion_ids()]
    askers = defaultdict(set)
    for prompt, response in zip(rollout.prompt_ids(), responses, strict=True):
        askers[response].add(tuple(prompt))
    alike = torch.tensor([len(askers[response]) > 1 for response in responses])
    return {
        "response/repeated": Mean.of(repeated_runs(rollout.actions, rollout.action_counts).float()),
        "response/duplicates": Mean.of(alike.float()),
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
    rollout = experience.rollout.by_episode()
    counts = rollout.action_counts
    reference = rollout.logprobs if experience.ref_logprobs is None else experience.ref_logprobs
    likelihood = sum_by_row(reference, counts) / counts.clamp(min=1)
    beside = {"length": counts.float(), "ending": rollout.finished.float(), "likelihood": likelihood}
    found: dict[str, Metric] = {
        f"objective/score_{name}_correlation": Correlation.of(scores[scored], values[scored])
        for name, values in beside.items()
    }
    if int(scored.sum()) >= TOKEN_ROWS:
        largest = token_correlation(rollout.actions, counts, scores, scored)
        found["objective/score_token_correlation"] = Max.of(largest)
    return found


def token_correlation(
    actions: Int[Tensor, " actions"],
    lengths: Int[Tensor, " rows"],
    scores: Float[Tensor, " rows"],
    scored: Bool[Tensor, " rows"],
) -> Float[Tensor, " at_most_one"]:
    """The largest correlation of the score with how often one token stands in a row; empty where there is none.

    Of the tokens in frequent use, each in some rows and not equally often in all.
    """
    tokens, which, total = actions.unique(return_inverse=True, return_counts=True)
    frequent = total.topk(min(TOKENS, len(tokens))).indices
    place = torch.full_like(tokens, -1).scatter(0, frequent, torch.arange(len(frequent), device=tokens.device))[which]
    rows = row_numbers(lengths)
    kept = place >= 0
    counts = torch.zeros(len(lengths), len(frequent), dtype=torch.float64, device=tokens.device)
    counts.index_put_(
        (rows[kept], place[kept]), torch.ones((), dtype=torch.float64, device=tokens.device), accumulate=True
    )
    counts, target = counts[scored], scores[scored].double()
    counts = counts[:, (counts > 0).sum(0) >= ROWS_WITH_TOKEN]
    counts, target = counts - counts.mean(0), target - target.mean()
    spread = counts.norm(dim=0) * target.norm()
    largest: Tensor = ((target @ counts)[spread > 0] / spread[spread > 0]).sort(descending=True).values[:1]
    return largest
