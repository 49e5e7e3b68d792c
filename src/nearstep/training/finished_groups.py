"""How the scored rows of a round become the groups that gates look at, all processes together."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers, sum_by_row
from nearstep.algorithm.shaping import add_scores
from nearstep.models.forward.forward import rollout_values
from nearstep.training.credit import shape_scores
from nearstep.training.experience import dense_rewards
from nearstep.training.frozen_passes import PassLimits
from nearstep.training.gates import FinishedGroups
from nearstep.training.joining import ScoredRows
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.types import Rollout

PART = "part: "


def finished_groups(rows: ScoredRows | None, r: Recipe, state: State) -> FinishedGroups:
    """The groups of a round over all processes, the same on each; `rows` are None where this process has none."""
    gathered = [each for each in r.backend.gather(None if rows is None else _by_row(rows, r, state)) if each]
    names = list(dict.fromkeys(name for each in gathered for name in each))
    together = {name: torch.cat([_column(each, name) for each in gathered]) for name in names}
    lines = {name: column.unflatten(0, (-1, r.config.num_generations)) for name, column in together.items()}
    parts = {name.removeprefix(PART): lines.pop(name) for name in names if name.startswith(PART)}
    return FinishedGroups(**lines, parts=parts)


def _by_row(rows: ScoredRows, r: Recipe, state: State) -> dict[str, Tensor]:
    """One number for each row, by what a FinishedGroups calls it."""
    rollout, scores, gate = rows.rollout, rows.scores, r.selection.gate
    found = {
        "scores": scores.with_dense(scores.total, rollout),
        "returns": first_returns(rows, r, state),
        "lengths": rollout.action_counts,
        "finished": rollout.finished,
        **({"values": prompt_values(rows, r)} if gate is not None and gate.needs_values else {}),
        **{f"{PART}{name}": part for name, part in scores.parts.items()},
    }
    return {name: column.cpu() for name, column in found.items()}


def _column(by_name: dict[str, Tensor], name: str) -> Tensor:
    """A part that a process has not met applied to none of its rows."""
    return by_name[name] if name in by_name else torch.full_like(by_name["scores"], torch.nan)


def first_returns(rows: ScoredRows, r: Recipe, state: State) -> Float[Tensor, " rows"]:
    """Σ γ^t reward of each row from its first action on, without a KL penalty; NaN for a row that was not scored."""
    rollout, scores, counts = rows.rollout, rows.scores, rows.rollout.action_counts
    shaped = shape_scores(scores, rollout, r.config, state.score_moments, state.part_moments)
    rewards = add_scores(dense_rewards(scores, rollout), shaped, counts, at_last=torch.ones_like(rollout.finished))
    discounts = r.config.gamma ** places_in_row(counts).double()
    returns = sum_by_row(rewards.double() * discounts, counts).to(shaped.dtype)
    return torch.where(scores.scored, returns, torch.nan)


@torch.no_grad()
def prompt_values(rows: ScoredRows, r: Recipe) -> Float[Tensor, " rows"]:
    """The critic's value of every row's prompt, in forward passes of limited size: prompts alone go through it.

    NaN for a row without an action.
    """
    critic = r.models.critic
    assert critic is not None, "gates that need values are refused where there is no critic"
    rollout = rows.rollout
    leads = None if r.critic_text is None else r.critic_text.leads(rows.prompts, rollout)
    begun = first_actions(rollout if leads is None else rollout.with_leads(leads))
    values = torch.cat([rollout_values(critic, part).before_actions for part in PassLimits.of(r).parts(begun)])
    return values.new_full((len(rollout),), torch.nan).masked_scatter(begun.action_counts > 0, values)


def first_actions(rollout: Rollout) -> Rollout:
    """Every row up to its first action."""
    rows = row_numbers(rollout.row_lengths)
    kept = places_in_row(rollout.row_lengths) <= rollout.prompt_lengths[rows]
    first = places_in_row(rollout.action_counts) == 0
    return replace(
        rollout,
        tokens=rollout.tokens[kept],
        is_action=rollout.is_action[kept],
        row_lengths=sum_by_row(kept.long(), rollout.row_lengths),
        logprobs=rollout.logprobs[first],
        top=None,
        action_versions=None,
    )
