"""Every number of a row on its way from the engine's log-prob to the gradient: what tokens.jsonl holds of a few rows,
and what `nearstep replay` prints of one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.kl import KLEstimator
from nearstep.algorithm.losses import probability_ratio
from nearstep.common.random_streams import stream
from nearstep.models.distribution import Sampling
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy
from nearstep.training.objectives import PolicyTerms, policy_objective, weights_at
from nearstep.training.recipe import Recipe
from nearstep.training.token_kl import token_kl
from nearstep.training.update import divisors_of
from nearstep.types import Experience


@dataclass(frozen=True)
class TokenNumbers:
    """Of every action. Log-probs in nats; numbers that a run does not have (no reference, no critic) are None."""

    token: Int[Tensor, " actions"]
    sampled_logprob: Float[Tensor, " actions"]  # recorded by the engine
    old_logprob: Float[Tensor, " actions"]  # what the ratio is taken against, one token at a time
    logprob: Float[Tensor, " actions"]  # of the policy as it is now
    ref_logprob: Float[Tensor, " actions"] | None
    kl: Float[Tensor, " actions"] | None  # by the run's estimator
    value: Float[Tensor, " actions"] | None
    reward: Float[Tensor, " actions"]  # score and KL penalty, where they stand
    advantage: Float[Tensor, " actions"]  # before whitening
    whitened_advantage: Float[Tensor, " actions"]  # what the loss multiplies with
    return_: Float[Tensor, " actions"] | None
    ratio: Float[Tensor, " actions"]  # π / π_old now; with ratio_level = turn or row that of the turn or row
    region_weight: Float[Tensor, " actions"]  # the trust region's: 0 where the token may not move
    entropy: Float[Tensor, " actions"]  # of the policy as it is now

    def columns(self, actions: slice) -> dict[str, list[float] | None]:
        """All but the token, of some actions and by name, as plain numbers with the digits that float32 has."""
        columns = {name.strip("_"): column for name, column in vars(self).items() if name != "token"}
        return {name: None if column is None else _plain(column[actions]) for name, column in columns.items()}


@dataclass(frozen=True)
class RowTracer:
    """Reads the numbers of rows with one forward pass of the policy as it is now."""

    policy: Policy
    sampling: Sampling
    terms: PolicyTerms
    kl_estimator: KLEstimator
    has_critic: bool

    @staticmethod
    def of(r: Recipe) -> "RowTracer":
        """That of a run."""
        return RowTracer(
            r.models.policy, r.sampling, PolicyTerms.of(r), r.config.kl_estimator, r.models.critic is not None
        )

    @torch.no_grad()
    def now(self, rows: Experience) -> ActionLogprobs:
        """The policy's log-probs of the actions of some rows."""
        return rollout_logprobs(self.policy, rows.rollout, self.sampling)

    def numbers(self, rows: Experience, now: ActionLogprobs) -> TokenNumbers:
        """The numbers of every action of some rows."""
        ref, estimator = rows.ref_logprobs, self.kl_estimator
        at = weights_at(rows, now, self.terms)
        return TokenNumbers(
            token=rows.rollout.actions,
            sampled_logprob=rows.rollout.logprobs,
            old_logprob=at.token_anchor.sampled,
            logprob=now.sampled,
            ref_logprob=ref,
            kl=token_kl(rows, estimator),
            value=rows.values if self.has_critic else None,
            reward=rows.rewards,
            advantage=rows.raw_advantages,
            whitened_advantage=rows.advantages,
            return_=rows.returns if self.has_critic else None,
            ratio=probability_ratio(now.sampled, at.anchor.sampled),
            region_weight=at.region.float(),
            entropy=now.entropy,
        )


@dataclass(frozen=True)
class TokenTrace:
    """One action, with what the run's TokenNumbers have of it."""

    token: int
    sampled_logprob: float
    old_logprob: float
    logprob: float
    ref_logprob: float | None
    kl: float | None
    value: float | None
    reward: float
    advantage: float
    whitened_advantage: float
    return_: float | None
    ratio: float
    region_weight: float  # the trust region's: 0 where it may not move
    gradient: float  # of the policy's loss by this log-prob, in the first minibatch if the batch were one


def trace_row(experience: Experience, row: int, r: Recipe) -> list[TokenTrace]:
    """Trace the actions of a row of a whole batch's experience, as the first optimizer step would see them."""
    one = experience.select(torch.tensor([row], device=experience.scores.device))
    tracer, divisors = RowTracer.of(r), divisors_of(experience, r.loss_aggregation, r.backend)
    now = tracer.now(one)
    leaf = now.sampled.detach().clone().requires_grad_()
    loss, _ = policy_objective(one, replace(now, sampled=leaf), tracer.terms, first=True)
    (loss / divisors.policy).backward()
    gradient = leaf.grad
    assert gradient is not None, "the policy's loss depends on every log-prob"
    numbers = tracer.numbers(one, now)
    shown = [field.name for field in fields(TokenTrace) if field.name != "gradient"]
    found = {name: vars(numbers)[name] for name in shown}
    columns = {name: [None] * len(leaf) if each is None else each.tolist() for name, each in found.items()}
    columns["gradient"] = gradient.tolist()
    return [TokenTrace(**dict(zip(columns, of_token, strict=True))) for of_token in zip(*columns.values(), strict=True)]


def rows_to_trace(advantage_by_row: Mapping[int, float], count: int, *, seed: int, update: int) -> list[int]:
    """Which rows are looked at closely: the one of largest mean |A|, then others drawn at random.

    Of rows alike in five digits it is the first: how a batch is split over processes must not choose.
    """
    rows = list(advantage_by_row)
    order = torch.randperm(len(rows), generator=stream(seed, "token_rows", update)).tolist()
    largest = sorted(rows, key=lambda row: (-float(f"{advantage_by_row[row]:.5g}"), row))[:1]
    return [*largest, *(rows[number] for number in order if rows[number] not in largest)][:count]


def _plain(column: Tensor) -> list[float]:
    return [float(str(number)) for number in column.detach().float().cpu().numpy()]
