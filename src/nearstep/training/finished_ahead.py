"""Groups of responses that are sampled ahead of their update, the batch that they make up, and how old it is."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nearstep.metrics import Max, Mean
from nearstep.rollout.ahead.messages import FinishedRow
from nearstep.training.joining import join_prompts
from nearstep.types import Prompts, Rollout


@dataclass
class GroupAhead:
    """The responses to one prompt, as far as there are any."""

    number: int  # of the prompt in the whole run
    prompts: Prompts
    in_data: int  # number of the prompt in the data
    rows: dict[int, FinishedRow] = field(default_factory=dict)  # that have ended, by episode
    begun: int | None = None  # version of the weights that sampled its oldest action

    @property
    def missing(self) -> list[int]:
        """Places of its rows that have not ended."""
        return [place for place, episode in enumerate(self.prompts.episodes) if episode not in self.rows]

    def take_up(self, version: int) -> None:
        """Weights of this version have sampled an action of it."""
        self.begun = version if self.begun is None else min(self.begun, version)


@dataclass(frozen=True)
class BatchAhead:
    """The groups that an update trains on, and what it cost to have them."""

    update: int
    groups: tuple[GroupAhead, ...]
    dropped: int  # rows that were left behind, too old
    waited: int  # groups of the batch that were waited for though as many others had ended
    idle: float | None  # share of the time since the last batch in which the generation process had nothing to do

    @property
    def prompts(self) -> Prompts:
        """Its prompts, row by row."""
        found = self.groups[0].prompts
        for group in self.groups[1:]:
            found = join_prompts(found, group.prompts)
        return found


def newest_alike(version: int, changes: Sequence[int], newest: int) -> int:
    """The newest version up to `newest` whose weights are those of `version`; `changes` are the versions, rising, whose
    weights differ from those before."""
    place = bisect_right(changes, version)
    return min(changes[place] - 1, newest) if place < len(changes) else newest


def age_metrics(rollout: Rollout, update: int) -> dict[str, Mean | Max]:
    """By how many updates the actions of a rollout are behind, and how many versions a row has."""
    ages = (update - rollout.versions).double()
    of_rows = ages.cpu().split(rollout.action_counts.tolist())
    return {
        "staleness/age": Mean.of(ages),
        "staleness/age_max": Max.of(ages),
        "staleness/age_oldest": Mean.of(torch.stack([row.max() for row in of_rows])),
        "staleness/age_newest": Mean.of(torch.stack([row.min() for row in of_rows])),
        "staleness/versions": Mean.of(torch.tensor([float(len(row.unique())) for row in of_rows])),
    }
