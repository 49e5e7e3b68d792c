"""The first step of an update: the engine samples responses from the current policy."""

from dataclasses import replace

import torch

from nearstep.common.errors import TrainingError
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.rollout.engine import RowEnded, engine_name, load, looks_unrecorded, play
from nearstep.training.recipe import Recipe
from nearstep.types import Prompts, Rollout

CERTAIN = -0.01  # nats; a token above that is certain, whatever rounding says


def generate(
    prompts: Prompts, r: Recipe, *, version: int, row_ended: RowEnded | None = None, load_weights: bool = True
) -> Rollout:
    """Hand the policy's weights to the engine as those of update number `version`, and sample a response for each row.

    Without `load_weights` the engine has them already: the update samples further prompts. Top tokens are recorded
    where the trust region compares them; `row_ended` is told of rows as they end, if the engine can. With max_staleness
    the responses are there already. Raises TrainingError where what the engine recorded cannot be trained on.
    """
    if load_weights and (r.ahead is None or r.config.dump_rollouts is not None):  # files are numbered by what is loaded
        load(r.engine, r.models.policy, version)
    settings = replace(r.generation, top_tokens=r.trust_region.top_k)
    if r.ahead is None:
        rollout = play(r.engine, prompts, settings, row_ended, version=version)
    else:
        rollout = r.ahead.rollout(prompts, settings)
    if looks_unrecorded(rollout, settings):
        _require_certainty(rollout, r)
    return rollout


@torch.no_grad()
def _require_certainty(rollout: Rollout, r: Recipe) -> None:
    """Raises TrainingError unless the policy itself finds the tokens of the first row certain."""
    row = rollout.select(torch.tensor([0], device=rollout.tokens.device))
    logprobs = rollout_logprobs(r.models.policy, row, r.sampling).sampled
    if logprobs.min() < CERTAIN:
        raise TrainingError(
            f"engine {engine_name(r.engine)} recorded a log-prob of 0 for every token of a rollout, as if each had "
            f"been certain, and the policy gives those of the first row {float(logprobs.min()):.3g} and more: the "
            "engine does not record what it sampled, and every ratio would be wrong. Record natural logs of the "
            "probabilities that were sampled from"
        )
