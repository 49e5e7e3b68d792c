"""Whether the data that a run is evaluated on has what its settings ask for, checked before any weight is loaded."""

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.config.rewards import LocalRewardSettings, reward_count
from nearstep.data.run_prompts import RunPrompts
from nearstep.rewards.build import RewardSpec, reward_specs

NEEDED_BY = ("eval_on_start", "early_stopping_patience", "eval_reward_funcs", "eval_reward_model_path",
             "eval_reference_column")  # fmt: skip


def judge_specs(config: PPOConfig, run_prompts: RunPrompts) -> list[RewardSpec]:
    """The rewards that judge evaluations alone.

    Raises ConfigError where settings of evaluation meet no evaluation data, or a column that none of it has, and
    RewardError as rewards of training do.
    """
    if not run_prompts.held_out:
        unmet = [name for name in NEEDED_BY if vars(config)[name] not in (None, False, ())]
        if unmet:
            raise ConfigError(
                f"{', '.join(unmet)}: there is nothing to evaluate on. Pass eval_dataset, or set eval_dataset_name, "
                "dataset_test_split or num_eval_rows"
            )
        return []
    columns = {column for prompts in run_prompts.held_out.values() for column in prompts.columns}
    wanted = config.eval_reference_column
    if wanted is not None and wanted not in columns:
        raise ConfigError(f"eval_reference_column = {wanted}: the evaluation data has only {sorted(columns)}")
    settings = judge_settings(config)
    return reward_specs(settings, columns=columns) if reward_count(settings) else []


def judge_settings(config: PPOConfig) -> LocalRewardSettings:
    """The rewards that judge evaluations alone, as settings of rewards."""
    return LocalRewardSettings(reward_model_path=config.eval_reward_model_path, reward_funcs=config.eval_reward_funcs)
