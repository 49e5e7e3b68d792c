"""What is looked at beside the updates, on a few rows: is the model random, is the reward upside down, the KL."""

from dataclasses import dataclass

import torch

from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.ragged import sum_by_row
from nearstep.metrics import Max, Mean, Metrics
from nearstep.models.forward.exact_kl import rollout_exact_kl
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.rewards.combine import Rewards
from nearstep.training.first_answers import FirstAnswers
from nearstep.training.recipe import Recipe
from nearstep.training.reward_probe import (
    PROBED_ROWS,
    ProbedAnswers,
    is_of_models,
    is_of_models_and_functions,
    own_over_damaged,
)
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Rollout

REPEATED_ROWS = 4  # that go through the policy twice
REPEATED_EVERY = 100  # updates; the first one is among them
LEARNED_UPDATES = 8  # after which a reward function has shown where it leads; a shorter run asks it nothing more


@dataclass
class Probes:
    """Looks of one run at its first update, its last, and some between; `kl_exact_rows` at every one."""

    recipe: Recipe
    first_answers: ProbedAnswers | None = None  # those of update 1, for the end

    @staticmethod
    def of(recipe: Recipe, state: State) -> "Probes":
        """Those of a run that begins or goes on: then it knows its first answers from `state`, their prompts anew."""
        if state.first_answers is None or not _asks_functions_at_the_end(recipe):
            return Probes(recipe)
        found, backend = state.first_answers, recipe.backend
        rows = found.rows(backend.rank, backend.world_size)
        prompts = recipe.prompts.again(found.numbers[rows].tolist(), found.episodes[rows].tolist())
        return Probes(recipe, ProbedAnswers(prompts, found.rollout(rows, backend.device)))

    @torch.no_grad()
    def look(self, prompts: Prompts, experience: Experience, state: State) -> Metrics:
        """The metrics of these looks, with the weights that sampled; `state` keeps the first answers."""
        r, rollout, metrics = self.recipe, experience.rollout, Metrics()
        if r.config.health_checks and state.update % REPEATED_EVERY == 1:
            with r.backend.gathered(r.models.policy.model):
                metrics += self._repeat_gap(rollout)
        if r.config.health_checks:
            metrics += self._reward(prompts, rollout, state)
        if r.config.kl_exact_rows > 0 and r.models.reference is not None:
            sample = rollout.select(
                torch.tensor(spread(len(rollout), r.config.kl_exact_rows), device=rollout.tokens.device)
            )
            with r.backend.gathered(r.models.policy.model, r.models.reference.policy.model):
                kl = rollout_exact_kl(r.models.policy, r.models.reference, sample, r.sampling)
            metrics += Metrics({"objective/kl_exact": Mean.of(sum_by_row(kl, sample.action_counts))})
        return metrics

    def _repeat_gap(self, rollout: Rollout) -> Metrics:
        rows = rollout.select(torch.tensor(spread(len(rollout), REPEATED_ROWS), device=rollout.tokens.device))
        policy, sampling = self.recipe.models.policy, self.recipe.sampling
        once, again = (rollout_logprobs(policy, rows, sampling).sampled for _ in range(2))
        return Metrics({"policy/repeat_gap": Max.of((probability_ratio(again, once) - 1).abs())})

    def _reward(self, prompts: Prompts, rollout: Rollout, state: State) -> Metrics:
        """Models are asked at once; functions when the run ends: a further call can change nothing of it then."""
        r, update = self.recipe, state.update
        if update == 1 and is_of_models_and_functions(r.rewards):
            answers = rollout.last_segments()
            self.first_answers = ProbedAnswers.some(prompts, answers, spread(len(answers), PROBED_ROWS))
            if not is_of_models(r.rewards):  # also of a short run, which may go on for longer than it was to
                state.first_answers = self._to_keep(self.first_answers)
        if self.first_answers is None or not isinstance(r.rewards, Rewards):
            return Metrics()
        at_the_end = _asks_functions_at_the_end(r) and update == r.batch.updates
        if not (update == 1 if is_of_models(r.rewards) else at_the_end):
            return Metrics()
        return own_over_damaged(self.first_answers, r.rewards, r.config.seed)

    def _to_keep(self, found: ProbedAnswers) -> FirstAnswers:
        numbers = self.recipe.prompts.numbers(found.prompts.episodes)
        own = FirstAnswers.of(numbers, found.prompts, found.rollout)
        return FirstAnswers.joined(self.recipe.backend.gather(own))


def _asks_functions_at_the_end(r: Recipe) -> bool:
    mixed = is_of_models_and_functions(r.rewards) and not is_of_models(r.rewards)
    return r.config.health_checks and mixed and r.batch.updates >= LEARNED_UPDATES


def spread(rows: int, count: int) -> list[int]:
    """Numbers of at most `count` rows, evenly spread: rows of one prompt stand beside each other."""
    count = min(rows, count)
    return [number * rows // count for number in range(count)]
