"""How much better than expected was each action: generalised advantage estimation over ragged rows."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import places_in_row, row_numbers


def gae(
    rewards: Float[Tensor, " actions"],
    values: Float[Tensor, " actions"],
    action_counts: Int[Tensor, " rows"],
    *,
    final_values: Float[Tensor, " rows"],
    final_advantages: Float[Tensor, " rows"],
    gamma: float,
    lam: float | Float[Tensor, " rows"],
) -> Float[Tensor, " actions"]:
    """Walk every row from its last action to its first: δ = r + γV' − V, A = δ + γλA'.

    `values[i]` is V of the state before action i. At a row's last action V' and A' are `final_values` and
    `final_advantages`: 0 and 0 where the episode ends there, V of the cut and 0 to bootstrap a truncated row, V of the
    state after the stop token and (score − that V) to give the score one step later as TRL does. `lam` may
    differ by row. Returns are the advantages plus `values`. Source: Schulman et al. 2016 (1506.02438), eq. 16.
    """
    rewards, values = wide(rewards), wide(values)
    rows = row_numbers(action_counts)
    steps_to_end = action_counts[rows] - 1 - places_in_row(action_counts)
    width = int(action_counts.max()) if len(action_counts) else 0

    # One column per step, the last action of every row in column 0: all rows then start together.
    shape = (width, len(action_counts))
    reward_steps = rewards.new_zeros(shape).index_put((steps_to_end, rows), rewards)
    value_steps = values.new_zeros(shape).index_put((steps_to_end, rows), values)
    next_value, running = final_values.to(values.dtype), final_advantages.to(values.dtype)
    advantages = []
    for reward, value in zip(reward_steps, value_steps, strict=True):
        running = reward + gamma * next_value - value + gamma * lam * running
        next_value = value
        advantages.append(running)
    return torch.stack(advantages)[steps_to_end, rows] if advantages else rewards


GroupRule: TypeAlias = Literal["group_mean", "group_normalized", "leave_one_out"]
GROUP_STD_FLOOR = 1e-4


def group_advantages(
    totals: Float[Tensor, " rows"],
    group_size: int,
    rule: GroupRule,
    scored: Bool[Tensor, " rows"] | None = None,
) -> Float[Tensor, " rows"]:
    """How much better a row did than the other responses to its prompt, which stand beside it.

    `group_mean` subtracts the group's mean (Dr. GRPO, 2503.20783), `group_normalized` also divides by its standard
    deviation (GRPO, 2402.03300), `leave_one_out` subtracts the mean of the others (RLOO, 2402.14740). Rows that are
    not `scored` are left out of the mean and get 0, as does a row without another in its group.
    """
    counted = torch.ones_like(totals) if scored is None else scored.to(totals.dtype)
    here: Tensor = wide(counted).unflatten(0, (-1, group_size))
    groups: Tensor = wide(totals).unflatten(0, (-1, group_size)) * here
    size = here.sum(dim=1, keepdim=True)
    gaps = (groups - groups.sum(dim=1, keepdim=True) / size.clamp(min=1)) * here
    others = (size - 1).clamp(min=1)
    match rule:
        case "group_mean":
            advantages = gaps
        case "group_normalized":
            std = (gaps.square().sum(dim=1, keepdim=True) / others).sqrt()
            advantages = gaps / (std + GROUP_STD_FLOOR)
        case "leave_one_out":
            advantages = gaps * size / others
    flat: Tensor = advantages.flatten()
    return flat


def length_adaptive_lam(action_counts: Int[Tensor, " rows"], alpha: float) -> Float[Tensor, " rows"]:
    """λ = 1 − 1 / (alpha · length), at least 0: long responses look further ahead. Source: VAPO (2504.05118)."""
    return (1 - 1 / (alpha * action_counts.clamp(min=1))).clamp(min=0)
