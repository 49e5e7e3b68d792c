"""What is looked at beside the updates, on a few rows: is the model random, is the reward upside down, the KL."""

from dataclasses import dataclass

import torch

from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.ragged import sum_by_row
from nearstep.metrics import Max, Mean, Metrics
from nearstep.models.forward.exact_kl import rollout_exact_kl
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.rewards.combine import Rewards
from nearstep.training.recipe import Recipe
from nearstep.training.reward_probe import (
    PROBED_ROWS,
    ProbedAnswers,
    is_of_models,
    is_of_models_and_functions,
    own_over_damaged,
)
from nearstep.types import Experience, Prompts, Rollout

REPEATED_ROWS = 4  # that go through the policy twice
REPEATED_EVERY = 100  # updates; the first one is among them
LEARNED_UPDATES = 8  # after which a reward function has shown where it leads; a shorter run asks it nothing more


@dataclass
class Probes:
    """Looks of one run at its first update, its last, and some between; `kl_exact_rows` at every one."""

    recipe: Recipe
    first_answers: ProbedAnswers | None = None  # those of update 1, for the end

    @torch.no_grad()
    def look(self, prompts: Prompts, experience: Experience, update: int) -> Metrics:
        """The metrics of these looks, with the weights that sampled."""
        r, rollout, metrics = self.recipe, experience.rollout, Metrics()
        if r.config.health_checks and update % REPEATED_EVERY == 1:
            with r.backend.gathered(r.models.policy.model):
                metrics += self._repeat_gap(rollout)
        if r.config.health_checks:
            metrics += self._reward(prompts, rollout, update)
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

    def _reward(self, prompts: Prompts, rollout: Rollout, update: int) -> Metrics:
        """Models are asked at once; functions when the run ends: a further call can change nothing of it then."""
        r = self.recipe
        if update == 1 and is_of_models_and_functions(r.rewards):
            answers = rollout.last_segments()
            self.first_answers = ProbedAnswers.some(prompts, answers, spread(len(answers), PROBED_ROWS))
        if self.first_answers is None or not isinstance(r.rewards, Rewards):
            return Metrics()
        at_the_end = LEARNED_UPDATES <= update == r.batch.updates
        if not (update == 1 if is_of_models(r.rewards) else at_the_end):
            return Metrics()
        return own_over_damaged(self.first_answers, r.rewards, r.config.seed)


def spread(rows: int, count: int) -> list[int]:
    """Numbers of at most `count` rows, evenly spread: rows of one prompt stand beside each other."""
    count = min(rows, count)
    return [number * rows // count for number in range(count)]
