"""What stands by episode, laid out by row, for records of episodes that have several."""

from dataclasses import replace

import torch

from nearstep.algorithm.ragged import row_numbers
from nearstep.types import Prompts, Rollout, Scores


def prompts_by_row(prompts: Prompts, rollout: Rollout) -> Prompts:
    """The prompt that each row begins with; inputs, columns and number are its episode's."""
    if rollout.episodes is None:
        return prompts
    rows = row_numbers(rollout.segment_counts).tolist()
    return Prompts(
        ids=rollout.prompt_ids(),
        inputs=[prompts.inputs[row] for row in rows],
        columns={name: [column[row] for row in rows] for name, column in prompts.columns.items()},
        episodes=[prompts.episodes[row] for row in rows],
    )


def scores_by_row(scores: Scores, rollout: Rollout) -> Scores:
    """The score of an episode at its last row; the others of it have 0, and no parts, extras or failures."""
    if rollout.episodes is None:
        return scores
    ends, episodes = rollout.ends_episode, row_numbers(rollout.segment_counts)
    last = ends.nonzero().squeeze(-1).tolist()
    episode_of = {row: episode for episode, row in enumerate(last)}
    return replace(
        scores,
        total=torch.where(ends, scores.total[episodes], scores.total[episodes] * 0),
        parts={name: torch.where(ends, part[episodes], torch.nan) for name, part in scores.parts.items()},
        extras={
            name: [values[episode_of[row]] if row in episode_of else None for row in range(len(rollout))]
            for name, values in scores.extras.items()
        },
        failures={
            name: {last[episode]: why for episode, why in found.items()} for name, found in scores.failures.items()
        },
    )
