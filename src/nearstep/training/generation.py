"""The first step of an update: the engine samples responses from the current policy."""

from dataclasses import replace

from nearstep.rollout.engine import RowEnded, play
from nearstep.training.recipe import Recipe
from nearstep.types import Prompts, Rollout


def generate(prompts: Prompts, r: Recipe, *, version: int, row_ended: RowEnded | None = None) -> Rollout:
    """Hand the policy's weights to the engine as those of update number `version`, and sample a response for each row.

    Top tokens are recorded where the trust region compares them; `row_ended` is told of rows as they end, if the engine
    can. Raises TrainingError where what the engine recorded cannot be trained on.
    """
    r.engine.load(r.models.policy, version)
    settings = replace(r.generation, top_tokens=r.trust_region.top_k)
    return play(r.engine, prompts, settings, row_ended, version=version)
