"""From scores of rows to rewards of tokens, and on to what a rule for advantages is given."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from nearstep.algorithm.advantage_rules import Advantage, Credit, CreditInputs, RewardPart, advantage_name
from nearstep.algorithm.ragged import places_in_row, row_numbers
from nearstep.algorithm.shaping import add_scores, score_after_stop_rules, soft_overlong_penalty
from nearstep.algorithm.statistics import AddUp, Moments, whiten
from nearstep.common.errors import RewardError, TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.models.forward.forward import StateValues
from nearstep.scale.backend import Backend
from nearstep.training.axis_results import credit_problem
from nearstep.types import Rollout, Scores


@dataclass(frozen=True)
class TokenRewards:
    """The reward of every action, and that of finished rows one step after their stop token (0 elsewhere)."""

    rewards: Float[Tensor, " actions"]
    final_rewards: Float[Tensor, " rows"]
    after_eos: Bool[Tensor, " rows"]  # rows whose score comes after their stop token


def shape_scores(
    scores: Scores, rollout: Rollout, config: PPOConfig, moments: Moments, part_moments: Mapping[str, Moments]
) -> Float[Tensor, " rows"]:
    """The score of every row: normalised by the moments of all scores so far, or every part by its own, cut to
    reward_clip, then the rules for rows that did not end themselves or came near the longest length. A row that has no
    score counts as 0. Raises RewardError where parts are to be normalised that give rewards to single tokens."""
    limit, shift = torch.inf if config.reward_clip is None else config.reward_clip, config.normalize_scores != "scale"
    totals = torch.where(scores.scored, scores.total, 0)
    if config.normalize_scores != "none" and config.normalize_scores_apart:
        totals = _normalized_apart(scores, part_moments, shift=shift).to(totals.dtype)
    elif config.normalize_scores != "none":
        totals = moments.normalize(totals, shift=shift)
    shaped = score_after_stop_rules(
        totals.clamp(-limit, limit),
        rollout.finished,
        missing_eos_penalty=config.missing_eos_penalty,
        replacement=config.penalty_reward_value if config.non_eos_penalty else None,
    )
    if config.overlong_buffer is None:
        return shaped
    lengths = rollout.action_counts
    return shaped + config.overlong_penalty * soft_overlong_penalty(
        lengths, longest=config.response_length, buffer=config.overlong_buffer
    )


def _normalized_apart(scores: Scores, moments: Mapping[str, Moments], *, shift: bool) -> Float[Tensor, " rows"]:
    """The weighted sum of the parts, each by its own moments; one that did not apply to a row adds 0 to it."""
    if scores.dense is not None:
        raise RewardError(
            "normalize_scores_apart scales what each reward gives to whole rows, and one gives rewards to single "
            "tokens: leave it out, or give one number for a row"
        )
    totals = torch.zeros_like(scores.total)
    for name, part in scores.parts.items():
        scaled = moments[name].normalize(part, shift=shift)
        totals = totals + scores.weights.get(name, 1.0) * torch.where(scores.scored & ~part.isnan(), scaled, 0)
    return totals


def rows_scored_after_eos(rollout: Rollout, config: PPOConfig, *, has_critic: bool) -> Bool[Tensor, " rows"]:
    """Rows whose score comes one step after their stop token, as in TRL: with score_position="after_eos" those that
    ended before their limit. That takes a critic, which values the state in between."""
    if config.score_position == "last_token" or not has_critic:
        return torch.zeros_like(rollout.finished)
    return rollout.finished & (rollout.action_counts < config.response_length)


def token_rewards(
    scores: Float[Tensor, " rows"],
    other: Float[Tensor, " actions"],
    scored: Bool[Tensor, " rows"],
    rollout: Rollout,
    *,
    after_eos: Bool[Tensor, " rows"],
    whiten_with: AddUp | None,
) -> TokenRewards:
    """The reward of every action: `other` (token rewards less the KL penalty), and at the last one the score.

    With `whiten_with`, a sum over all processes, rewards are scaled to variance 1 and keep their mean; those after
    the stop token are scaled with them.
    """
    counts = rollout.action_counts
    rewards = add_scores(other, scores, counts, at_last=~after_eos)
    final_rewards = torch.where(after_eos, scores, 0)
    if whiten_with is None:
        return TokenRewards(rewards, final_rewards, after_eos)
    together = torch.cat([rewards, final_rewards[after_eos]])
    counted = torch.cat([scored[row_numbers(counts)], scored[after_eos]])
    scaled = whiten(together, shift_mean=False, counted=counted, add_up=whiten_with)
    finals = torch.zeros_like(final_rewards)
    finals[after_eos] = scaled[len(rewards) :].to(finals.dtype)
    return TokenRewards(scaled[: len(rewards)], finals, after_eos)


def first_episode(rollout: Rollout, backend: Backend) -> int:
    """Place of this process's first episode among those of all processes.

    Raises TrainingError where rows of one episode are apart, in one process or in two: credit runs along an episode.
    """
    episodes = rollout.episodes
    own = len(rollout) if episodes is None else torch.unique_consecutive(episodes).tolist()
    gathered = backend.gather(own)
    named = [number for numbers in gathered if isinstance(numbers, list) for number in numbers]
    twice = sorted({number for number in named if named.count(number) > 1}) if len(set(named)) < len(named) else []
    if twice:
        raise TrainingError(
            f"rows of episode {twice[0]} do not stand side by side in one process; keep the segments of an episode "
            "together, in order"
        )
    return sum(len(found) if isinstance(found, list) else found for found in gathered[: backend.rank])


def at_last_rows(values: Shaped[Tensor, " episodes"], rollout: Rollout) -> Shaped[Tensor, " rows"]:
    """Values by episode, at the last row of each; 0 at the others."""
    if rollout.episodes is None:
        return values
    return values.new_zeros(len(rollout)).index_put((rollout.ends_episode,), values)


def on_all_rows(values: Shaped[Tensor, " episodes"], rollout: Rollout) -> Shaped[Tensor, " rows"]:
    """Values by episode, at each row of it."""
    return values if rollout.episodes is None else values[row_numbers(rollout.segment_counts)]


def credit_inputs(
    rewarded: TokenRewards,
    states: StateValues,
    scores: Scores,
    rollout: Rollout,
    config: PPOConfig,
    backend: Backend,
    *,
    counted: Bool[Tensor, " episodes"],
    update: int,
    first_row: int,
    critic_is_ready: bool,
) -> CreditInputs:
    """What a rule for advantages is given. A state after the last action has a value where something follows it.

    Everything is by episode: the segments of one, where it has several, are one row. Episodes that are not `counted`
    have no score, or do not train for a gate.
    """
    episodes = rollout.by_episode()
    has_future = rewarded.after_eos | ~episodes.finished if config.bootstrap_truncated else rewarded.after_eos
    final = states.final if rollout.episodes is None else states.final[rollout.ends_episode]
    final_values, columns = torch.where(has_future, final, 0), states.final_columns
    if columns is not None:
        columns = columns if rollout.episodes is None else columns[rollout.ends_episode]
        columns = torch.where(has_future[:, None], columns, 0)

    def gather_rows(row_values: Tensor) -> Tensor:
        return torch.cat([share.to(row_values.device) for share in backend.gather(row_values.cpu())])

    return CreditInputs(
        rewards=rewarded.rewards,
        values=states.before_actions,
        action_counts=episodes.action_counts,
        final_values=final_values,
        final_advantages=torch.where(rewarded.after_eos, rewarded.final_rewards - final_values, 0),
        scored=counted,
        update=update,
        response_length=config.response_length,
        turn_starts=episodes.turn_starts,
        segment_starts=None if rollout.episodes is None else places_in_row(rollout.action_counts) == 0,
        group_size=config.num_generations,
        first_row=first_row,
        gather_rows=gather_rows,
        add_up=backend.add_up,
        critic_is_ready=critic_is_ready,
        parts=tuple(RewardPart(name, scores.weights.get(name, 1.0), scores.parts[name]) for name in _in_order(scores)),
        value_columns=states.columns,
        final_value_columns=columns,
    )


def _in_order(scores: Scores) -> list[str]:
    """The parts in the order of the run's rewards: in files they may stand in another."""
    return (
        sorted(scores.parts, key=list(scores.weights).index)
        if scores.weights.keys() == scores.parts.keys()
        else [*scores.parts]
    )


def give_credit(advantage: Advantage, inputs: CreditInputs, *, has_token_rewards: bool) -> Credit:
    """Advantages and targets by the rule. Raises RewardError where it would flatten rewards of single tokens, and
    TrainingError where it does not return one finite number for each action."""
    if has_token_rewards and not advantage.uses_token_rewards:
        raise RewardError(
            f"advantage {advantage_name(advantage)} looks only at the sum of a row, and a reward is given to single "
            "tokens: which token earned what would be lost. Give one number for a row, or use advantage = gae, "
            "turn_gae or batch_normalized"
        )
    credit = advantage.credit(inputs)
    problem = credit_problem(credit, len(inputs.rewards), needs_critic=advantage.needs_critic)
    if problem is None:
        return credit
    given = all(bool(values.isfinite().all()) for values in (inputs.rewards, inputs.values))
    advice = "" if given else ". The rewards or values that it was given are not all finite either: look there first"
    raise TrainingError(f"update {inputs.update}: advantage {advantage_name(advantage)}: {problem}{advice}")
