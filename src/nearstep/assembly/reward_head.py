"""How the reward models of a run are loaded, and the random head that one gets for a first try."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from nearstep.config.ppo import PPOConfig
from nearstep.models.reward_start import start_reward_model
from nearstep.rewards.build import RewardModelOptions, RewardSpec, load_reward_model


def load_reward_models(
    specs: Sequence[RewardSpec],
    options: RewardModelOptions,
    config: PPOConfig,
    pad_token_id: int | None,
    notes: list[str],
) -> list[PreTrainedModel | None]:
    """The reward model of every entry, None for functions.

    One that was named and has no trained head gets a random one where random_reward_head says so, which is noted. Else
    raises ModelError for it. None at all with reward_trunk = adapter: they are put on the policy's weights later.
    """
    if config.reward_trunk == "adapter":
        return [None] * len(specs)
    if not config.random_reward_head:
        return [load_reward_model(spec, options) for spec in specs]
    models, made = [], []
    for spec in specs:
        model, is_new = None, False
        if isinstance(spec, str):
            model, is_new = start_reward_model(
                spec, seed=config.seed, dtype=options.dtype, pad_token_id=pad_token_id, trust=options.trust
            )
        models.append(model if is_new else load_reward_model(spec, options))
        made += [spec] if is_new else []
    notes += [
        f"{spec} has no trained head and got a random one (random_reward_head): its scores mean nothing, and neither "
        "does what this run learns."
        for spec in made
    ]
    if not made:
        notes.append("random_reward_head changed nothing: no reward model that was named lacks a trained head.")
    return models
