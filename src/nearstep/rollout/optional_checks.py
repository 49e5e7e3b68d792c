"""Whether what few engines record can be trained on: rows of several turns or segments, versions, inputs beside tokens.

An engine that records none of it passes untouched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.algorithm.ragged import row_numbers
from nearstep.common.errors import TrainingError, shorten
from nearstep.types import Prompts, Rollout

WHOLE_NUMBERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class AskedRows:
    """What was asked of each row of a rollout."""

    prompts: Prompts
    limits: Sequence[int]  # most actions


def check_episodes(rollout: Rollout, prompts: Prompts, engine: str) -> None:
    """Raise TrainingError where rows are not the segments of the episodes that were asked for, side by side."""
    if rollout.episodes is None:
        return
    found: object = rollout.episodes
    if not isinstance(found, Tensor) or found.dtype not in WHOLE_NUMBERS or found.shape != rollout.row_lengths.shape:
        raise TrainingError(
            f"engine {engine}: episodes is {_kind(found)}; record one whole number for each of the "
            f"{len(rollout.row_lengths)} rows, its episode's in prompts.episodes, or None where each row is one"
        )
    recorded = torch.unique_consecutive(found).tolist()
    if recorded != list(prompts.episodes):
        raise TrainingError(
            f"engine {engine}: rows are of the episodes {shorten(recorded)}, and {shorten(list(prompts.episodes))} "
            "were asked for; record the rows of each episode side by side, in order, at least one for each"
        )


def asked_rows(rollout: Rollout, prompts: Prompts, limits: Sequence[int], engine: str) -> AskedRows:
    """Prompt and limit of each row, whose lengths are right: a later segment begins with whatever it was given.

    Raises TrainingError for one that was given nothing, and for one that says that it was cut off and is followed.
    """
    if rollout.episodes is None:
        return AskedRows(prompts, limits)
    own, rows = rollout.prompt_ids(), row_numbers(rollout.segment_counts).tolist()
    ids = list(own)
    for row, episode in enumerate(rows):
        if row == 0 or rows[row - 1] != episode:
            ids[row] = prompts.ids[episode]
        elif not own[row]:
            raise TrainingError(
                f"engine {engine}: row {row} (episode {prompts.episodes[episode]}) is a later segment without a "
                "prompt; record what the policy was given there, at least one token"
            )
    cut = (~rollout.finished & ~rollout.ends_episode).nonzero()
    if len(cut):
        row = int(cut[0])
        raise TrainingError(
            f"engine {engine}: row {row} (episode {prompts.episodes[rows[row]]}) has finished = false and another "
            "segment behind it; say finished = true of rows that go on in the next one: nothing cut them off"
        )
    episodes = [prompts.episodes[episode] for episode in rows]
    asked = Prompts(ids=ids, inputs=[prompts.inputs[episode] for episode in rows], columns={}, episodes=episodes)
    return AskedRows(asked, [limits[episode] for episode in rows])


def check_versions(rollout: Rollout, prompts: Prompts, engine: str, newest: int | None) -> None:
    """Raise TrainingError where versions of actions are not those of their rows, or of weights never loaded.

    `prompts` has a line for each row.
    """
    if rollout.action_versions is None:
        return
    found: object = rollout.action_versions
    if not isinstance(found, Tensor) or found.dtype not in WHOLE_NUMBERS or found.shape != rollout.logprobs.shape:
        raise TrainingError(
            f"engine {engine}: action_versions is {_kind(found)}; record one whole number for each of the "
            f"{len(rollout.logprobs)} actions, or None where weights stay within a row"
        )
    rows = row_numbers(rollout.action_counts)
    oldest = found.new_full((len(rollout),), torch.iinfo(found.dtype).max).scatter_reduce(0, rows, found, "amin")
    wrong = (oldest != rollout.policy_version).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise TrainingError(
            f"engine {engine}: row {row} (episode {prompts.episodes[row]}) is of policy version "
            f"{int(rollout.policy_version[row])}, and the oldest of its actions of {int(oldest[row])}; record the "
            "oldest as policy_version"
        )
    if newest is not None and len(found) and int(found.max()) > newest:
        row = int(rows[int(found.argmax())])
        raise TrainingError(
            f"engine {engine}: row {row} (episode {prompts.episodes[row]}) has an action of policy version "
            f"{int(found.max())}, and {newest} was loaded last; record the version that load gave with the weights"
        )


def check_ends(rollout: Rollout, prompts: Prompts, engine: str) -> None:
    """Raise TrainingError where something stands behind the last action of a row. `prompts` has a line for each row."""
    wrong = (~rollout.is_action[rollout.last_positions]).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise TrainingError(
            f"engine {engine}: row {row} (episode {prompts.episodes[row]}) ends with a token that is no action; leave "
            "out what follows the last action of a row"
        )


def check_model_inputs(rollout: Rollout, engine: str) -> None:
    """Raise TrainingError where inputs beside tokens are not one tensor, or None, for each row under a name."""
    inputs: object = rollout.model_inputs
    if inputs is None:
        return
    if not isinstance(inputs, Mapping):
        raise TrainingError(f"engine {engine}: model_inputs is {shorten(inputs)}; record a mapping by name, or None")
    for name, values in inputs.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TrainingError(
                f"engine {engine}: model_inputs has the name {shorten(name)}; names are those of the model's arguments"
            )
        fits = isinstance(values, Sequence) and all(value is None or isinstance(value, Tensor) for value in values)
        if not fits or len(values) != len(rollout):
            raise TrainingError(
                f"engine {engine}: model_inputs[{name!r}] is {shorten(values)}; record a list with one tensor, or "
                f"None, for each of the {len(rollout)} rows"
            )


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else shorten(value)
