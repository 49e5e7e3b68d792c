"""Groups of responses that are sampled ahead of their update, the batch that they make up, and how old it is."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nearstep.metrics import Max, Mean, Metrics
from nearstep.rollout.ahead.messages import FinishedRow
from nearstep.rollout.ahead.rows import rollout_of
from nearstep.rollout.checks import check_rollout
from nearstep.rollout.engine import GenerationSettings, row_limits
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

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """The numbers in the data of the prompts of some of its episodes."""
        found = {each: group.in_data for group in self.groups for each in group.prompts.episodes}
        return [found[episode] for episode in episodes]

    def rollout(self, prompts: Prompts, settings: GenerationSettings, device: torch.device) -> Rollout:
        """The answers to prompts of it, checked as any engine's."""
        rows = {episode: row for group in self.groups for episode, row in group.rows.items()}
        return check_rollout(
            rollout_of([rows[episode] for episode in prompts.episodes], device),
            prompts,
            engine="of the generation process",
            limits=row_limits(prompts.ids, settings.response_length, settings.max_length),
            top_tokens=settings.top_tokens,
            newest=self.update,
            vocabulary=settings.vocabulary,
        )

    def metrics(self, rollout: Rollout) -> Metrics:
        """How old a rollout of it is, and who has waited for whom; `reports/metrics.py` has the meanings."""
        found = age_metrics(rollout, self.update)
        found |= {
            "staleness/dropped": Max.of(torch.tensor([float(self.dropped)])),
            "staleness/waited": Max.of(torch.tensor([float(self.waited)])),
        }
        if self.idle is not None:
            found["staleness/idle"] = Mean.of(torch.tensor([self.idle]))
        return Metrics(found)


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
