"""Tables that users know from other guides, with our names and defaults beside theirs: checked against the settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.harness.results import table

from nearstep.classic.factory import DEFAULTS
from nearstep.config.old_names import OF_TRAINING
from nearstep.config.options import option_of
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import RECIPES
from nearstep.reports.metrics import escape_cell, meaning

# By guide: its settings with its defaults ("" where it has none), and what holds here beside PPOConfig's own defaults.
PPOV2 = {
    "learning_rate": "3e-6", "num_ppo_epochs": "4", "num_mini_batches": "1", "per_device_train_batch_size": "",
    "gradient_accumulation_steps": "", "total_episodes": "", "local_rollout_forward_batch_size": "",
    "model_name_or_path": "", "sft_model_path": "", "reward_model_path": "", "non_eos_penalty": "off",
    "penalty_reward_value": "-1", "stop_token": "none", "cliprange": "0.2", "kl_coef": "0.05", "vf_coef": "0.1",
    "cliprange_value": "0.2", "gamma": "1.0", "lam": "0.95", "whiten_rewards": "off", "response_length": "53",
    "temperature": "0.7", "num_sample_generations": "10",
}  # fmt: skip
DECOUPLED = {"vf_learning_rate": "the policy's", "num_vf_epochs": "1", "vf_update_frequency": "1"}
DIVERGENCE = {
    "divergence_type": "binary_tv", "divergence_topk": "20", "epsilon": "0.15 (TV), 0.05 (KL)", "epsilon_high": "as epsilon",
}  # fmt: skip
ALIGNTUNE = {
    "cliprange": "0.2", "kl_coef": "0.1", "vf_coef": "0.1", "gamma": "1.0", "lam": "0.95", "num_generations": "8",
    "num_ppo_epochs": "4", "reward_model_name": "none", "reward_model_path": "none", "reward_functions": "[]",
    "reward_function_weights": "[]",
}  # fmt: skip
MINDSPEED = {
    "ref_model": "", "reward_model": "", "kl_coef": "0.3", "gamma": "1.0", "lam": "0.95", "clip_ratio": "0.2",
    "cliprange_value": "0.2", "max_length": "256", "max_new_tokens": "128", "do_sample": "off",
}  # fmt: skip
# What no alias says: their name, ours.
OURS = {"epsilon": "divergence_low", "epsilon_high": "divergence_high"}
METRICS = (
    "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
    "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
)  # fmt: skip


def page() -> str:
    """The page docs/tables.md."""
    parts = [
        "# Tables you know",
        "The settings that other guides list, with what they are called here and our default. *Theirs* are as typed: nearstep "
        "understands the names that differ, and says so. All of ours: [settings](settings.md).",
        "## PPOv2 of TRL", "More: [migration](migrations/trl_ppo.md), [algorithm](algorithms/ppo.md).", _table(PPOV2),
        "## The draft of decoupled PPO", "With `--recipe decoupled` or `DecoupledPPOConfig`. More: "
        "[migration](migrations/decoupled_draft.md), [algorithm](algorithms/decoupled.md).",
        _table(DECOUPLED, RECIPES["decoupled"]),
        "## Divergence PPO", "With `--recipe divergence` or `DivergencePPOConfig`. More: [migration](migrations/trl_dppo.md), "
        "[algorithm](algorithms/divergence.md).", _table(DIVERGENCE, RECIPES["divergence"]),
        "## AlignTune", "Of `create_rl_trainer`. More: [migration](migrations/aligntune.md).", _table(ALIGNTUNE, DEFAULTS),
        "## MindSpeed-LLM, `--stage trl_ppo`", "With `--recipe mindspeed`. More: [migration](migrations/mindspeed.md).",
        _table(MINDSPEED, RECIPES["mindspeed"]),
        "## Metrics of PPOv2", "The names are the same. All of ours: [metrics](metrics.md).",
        table(("metric", "meaning"), [(f"`{name}`", escape_cell(meaning(name))) for name in METRICS]).rstrip(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def ours(theirs: str) -> str:
    """Our name of a setting. Raises KeyError where there is none: then a table is wrong."""
    name = OURS.get(theirs, OF_TRAINING.renamed.get(theirs, theirs))
    if name not in PPOConfig.types:
        raise KeyError(theirs)
    return name


def _table(theirs: Mapping[str, str], here: Mapping[str, object] | None = None) -> str:
    fields = {each.name: each for each in dataclasses.fields(PPOConfig)}
    rows = []
    for name, default in theirs.items():
        setting = fields[ours(name)]
        held: Any = (here or {}).get(setting.name, setting.default)
        rows.append((
            f"`{name}`", default, f"`{setting.name}`", _shown(held), escape_cell(option_of(setting).help),
        ))  # fmt: skip
    return table(("theirs", "their default", "ours", "our default", "what it does"), rows).rstrip()


def _shown(value: object) -> str:
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
