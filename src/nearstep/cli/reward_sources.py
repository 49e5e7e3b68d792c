"""What a command lacks that has rewards: from the command line, rewards can come from the settings alone."""

import os
import re
from collections.abc import Iterator

from nearstep.cli.places import absent_places, absent_reward_files
from nearstep.config.rewards import LocalRewardSettings, RewardSettings, reward_count
from nearstep.config.sections import RoleSettings
from nearstep.config.settings import Problem
from nearstep.rewards.builtin.spec import meaning, problems_of


def reward_lacks(settings: LocalRewardSettings) -> Iterator[Problem]:
    """No reward, a weight too many, a place that is not there, a token that is not set."""
    sources = ("reward_model_path", "reward_funcs")
    rewards = reward_count(settings)
    if rewards == 0:
        or_head = ", or any model as reward_model_path with --random_reward_head" * isinstance(settings, RoleSettings)
        yield Problem(
            "no reward: give reward_model_path, or reward_funcs (nearstep rewards lists them; for a first try "
            f"--reward_funcs length{or_head})",
            sources,
        )
    if settings.reward_weights is not None and 0 < rewards < len(settings.reward_weights):
        yield Problem(
            f"reward_weights has {len(settings.reward_weights)} weights for {rewards} reward(s)",
            ("reward_weights", *sources),
        )
    yield from absent_places({"reward_model_path": settings.reward_model_path})
    yield from absent_reward_files(entry for entry in settings.reward_funcs if meaning(entry) in ("file", "model"))
    for entry in settings.reward_funcs:
        yield from (Problem(f"reward_funcs: {text}", ("reward_funcs",)) for text in problems_of(entry))
    if isinstance(settings, RewardSettings) and settings.reward_url is not None:
        variable = settings.reward_url_token_env
        if variable is not None and not os.environ.get(variable):
            # What was given may be the token itself: only what is written like a variable is repeated.
            named = variable if re.fullmatch(r"[A-Z][A-Z0-9_]*", variable) else "the variable of this name"
            text = f"reward_url_token_env: {named} is not set in the environment"
            yield Problem(text, ("reward_url_token_env",))
