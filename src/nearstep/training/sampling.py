"""The first two steps of an update: sample and score, with other prompts anew while a gate drops groups."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream
from nearstep.metrics import Max, Mean, Metrics, Std
from nearstep.training.finished_groups import finished_groups
from nearstep.training.gates import FinishedGroups, Gate, gate_problem
from nearstep.training.generation import generate
from nearstep.training.idle import critic_away
from nearstep.training.joining import ScoredRows
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Rollout, Scores


@dataclass(frozen=True)
class Sampled:
    """The batch of an update: this process's rows, which of them train, and what became of the others."""

    rows: ScoredRows
    kept: Bool[Tensor, " rows"]
    episodes: int  # that were generated, over all processes
    metrics: Metrics = field(default_factory=Metrics)
    dropped: tuple[ScoredRows, ...] = ()  # rows of this process whose place others have taken
    stand_ins: Mapping[int, int] = field(default_factory=dict)  # dropped place of the batch → kept one that fills it

    @property
    def batch(self) -> tuple[Prompts, Rollout, Scores]:
        """Prompts, what was answered, and how it scored."""
        return self.rows.prompts, self.rows.rollout, self.rows.scores

    def with_stand_ins(self, experience: Experience) -> Experience:
        """What the update trains on: copies of kept groups too, each under the number of the group that it replaces."""
        rows_of = defaultdict(list)
        for row, number in enumerate(experience.prompt_numbers.tolist()):
            rows_of[number].append(row)
        copies = [(row, place) for place, kept in self.stand_ins.items() for row in rows_of[kept]]
        if not copies:
            return experience
        rows, places = torch.tensor(copies, device=experience.scores.device).unbind(1)
        own = torch.arange(len(experience), device=rows.device)
        numbers = torch.cat([experience.prompt_numbers, places])
        return replace(experience.select(torch.cat([own, rows])), prompt_numbers=numbers)


def sample(prompts: Prompts, r: Recipe, state: State) -> Sampled:
    """Generate and score the prompts of an update, all processes together.

    The sampler is told the scores; the gate says which groups train. With gate_fill = refill new prompts take the place
    of dropped groups, as many as are missing, in at most `refill_rounds` further rounds; what is dropped in the last
    one stays where it is and trains nothing, as without gate_fill.
    """
    with r.backend.gathered(r.models.policy.model, _looked_at(r)):
        return _sample(prompts, r, state)


def _looked_at(r: Recipe) -> nn.Module | None:
    """The critic, where a gate asks it."""
    asks = r.selection.gate is not None and r.selection.gate.needs_values
    return r.models.critic.model if asks and r.models.critic is not None else None


def _sample(prompts: Prompts, r: Recipe, state: State) -> Sampled:
    selection = r.selection
    batch = _play(prompts, r, state)
    dropped_ahead = 0 if r.ahead is None else r.ahead.dropped
    found = Metrics() if r.ahead is None else r.ahead.metrics(batch.rollout)
    if not selection.looks_at_scores:
        return Sampled(batch, torch.ones_like(batch.scores.scored), r.batch.batch + dropped_ahead, found)
    if batch.rollout.episodes is not None:
        raise TrainingError(
            "gates, and samplers that learn from scores, look at episodes of one row, and the engine gave some of "
            "several: leave gate and sampler out"
        )
    rounds: list[FinishedGroups] = []
    dropped: list[ScoredRows] = []
    new: ScoredRows | None = batch
    kept, places = torch.zeros(r.batch.prompts, dtype=torch.bool), [*range(r.batch.prompts)]
    while True:
        rounds.append(groups := finished_groups(new, r, state))
        r.prompts.seen(groups.scores.double().nanmean(1).tolist())
        kept[places] = _keeps(selection.gate, groups)
        places = (~kept).nonzero().flatten().tolist()
        if selection.fill != "refill" or not places or len(rounds) > selection.refill_rounds:
            break
        own = _own_rows(places, batch, r)
        new = _play_more(r.prompts.more(places), r, state)
        if new is not None:
            dropped.append(batch.select(own))
            batch = batch.with_rows(own, new)
    state.selection = selection.state_dict()
    _tell_of_gaps(kept, r)
    return Sampled(
        batch,
        kept[_places(batch, r)].to(batch.rollout.finished.device),
        sum(groups.scores.numel() for groups in rounds) + dropped_ahead,
        found + (Metrics() if selection.gate is None else gate_metrics(kept, rounds)) + selection.metrics(),
        tuple(dropped),
        stand_ins(kept, r.config.seed, state.update) if selection.fill == "replace" else {},
    )


def _play(prompts: Prompts, r: Recipe, state: State, *, first: bool = True) -> ScoredRows:
    """One round: responses to the prompts, and their scores."""
    with critic_away(r):
        with r.clock("generate"), r.rewards.early(prompts) as early:
            rollout = generate(prompts, r, version=state.update, row_ended=early, load_weights=first)
        with r.clock("score"):
            scores = r.rewards(prompts, rollout, early)
            state.update_score_moments(scores, r.config, r.backend)
    return ScoredRows(prompts, rollout, scores)


def _play_more(prompts: Prompts, r: Recipe, state: State) -> ScoredRows | None:
    """A further round; None where this process has no row of it."""
    if len(prompts) > 0:
        return _play(prompts, r, state, first=False)
    state.update_score_moments(Scores(torch.zeros(0)), r.config, r.backend)  # together with those that have rows
    return None


def _places(batch: ScoredRows, r: Recipe) -> Tensor:
    """Of each row of this process, which prompt of the batch over all processes it answers."""
    first = sum(r.backend.gather(len(batch))[: r.backend.rank])
    return torch.arange(first, first + len(batch)) // r.config.num_generations


def _own_rows(places: Sequence[int], batch: ScoredRows, r: Recipe) -> list[int]:
    """Rows of this process that answer the prompts of these places."""
    rows: list[int] = torch.isin(_places(batch, r), torch.tensor(places)).nonzero().flatten().tolist()
    return rows


def _keeps(gate: Gate | None, groups: FinishedGroups) -> Bool[Tensor, " groups"]:
    """What the gate keeps; everything where there is none. Raises TrainingError where its answer is none."""
    if gate is None:
        return torch.ones(len(groups), dtype=torch.bool)
    kept = gate.keep(groups)
    problem = gate_problem(kept, len(groups))
    if problem is not None:
        raise TrainingError(f"gate {type(gate).__name__}: {problem}")
    return kept.cpu()


def stand_ins(kept: Bool[Tensor, " groups"], seed: int, update: int) -> dict[int, int]:
    """For each place of the batch that was dropped a kept one, drawn by the seed: each as often as any other, but for
    one time. Nothing where none was kept."""
    there: list[int] = kept.nonzero().flatten().tolist()
    if not there:
        return {}
    order = torch.randperm(len(there), generator=stream(seed, "stand-ins", update)).tolist()
    dropped: list[int] = (~kept).nonzero().flatten().tolist()
    return {place: there[order[number % len(there)]] for number, place in enumerate(dropped)}


def gate_metrics(kept: Bool[Tensor, " groups"], rounds: Sequence[FinishedGroups]) -> Metrics:
    """What the gate did, over all processes and alike on each."""
    generated = sum(map(len, rounds))
    scores = torch.cat([groups.scores for groups in rounds]).double()
    return Metrics({
        "gate/dropped": Mean(torch.tensor(float(generated - int(kept.sum()))), torch.tensor(float(generated))),
        "gate/empty": Mean.of((~kept).double()),
        "gate/rounds": Max.of(torch.tensor([float(len(rounds))])),
        "gate/scores": Mean.of(scores[~scores.isnan()]),
        "gate/scores_std": Std.of(scores[~scores.isnan()]),
    })  # fmt: skip


def _tell_of_gaps(kept: Bool[Tensor, " groups"], r: Recipe) -> None:
    """Say once that places stay empty though they should be filled, and that nothing was kept at all."""
    if not r.backend.is_main or bool(kept.all()):
        return
    name = type(r.selection.gate).__name__
    if not bool(kept.any()):
        warnings.warn(
            f"gate {name} has dropped all groups of an update: nothing is learned in it. gate/empty says in which; "
            "take prompts on which answers differ, or a wider gate",
            stacklevel=3,
        )
    elif r.selection.fill == "refill":
        warnings.warn(
            f"gate {name} has not filled a batch after {r.selection.refill_rounds} further rounds (refill_rounds): the "
            "update trains on fewer prompts. gate/empty says on how many; raise refill_rounds, or take other prompts",
            stacklevel=3,
        )
