"""Settings that belong together: the members of the PPO family by name, for Python and for `--recipe`."""

from collections.abc import Mapping

from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import with_defaults

# The critic on an optimizer of its own, after the policy. Its rate is learning_rate unless vf_learning_rate is given.
DECOUPLED: Mapping[str, object] = {"critic": "decoupled"}

# Divergence PPO (2602.04879): total variation against the policy that sampled, no KL penalty, untempered.
DIVERGENCE: Mapping[str, object] = {"trust_region": "binary_tv", "kl_coef": 0.0, "temperature": 1.0}

# What TRL's PPOTrainer (up to 1.12) does, its defects left out: the score one step after EOS, gradients never cut,
# and no end of a response but the tokenizer's EOS.
TRL_PARITY: Mapping[str, object] = {"score_position": "after_eos", "max_grad_norm": None, "stop_token": "eos"}

# CISPO (2506.13585): no token is left out, its importance weight is capped; at 5, as in 2602.04879's comparison.
CISPO: Mapping[str, object] = {"trust_region": "unbounded", "ratio_cap": 5.0, "kl_coef": 0.0, "temperature": 1.0}

# GSPO (2507.18071): one ratio for a response, clipped far closer to 1, against the other responses to the prompt.
GSPO: Mapping[str, object] = {
    "ratio_level": "row", "cliprange": 3e-4, "cliprange_high": 4e-4, "loss_aggregation": "sequence_mean",
    "advantage": "group_normalized", "num_generations": 8, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# DAPO (2503.14476), with its dynamic sampling: where all responses to a prompt score alike, another prompt is sampled.
# Its soft penalty for length needs a size of its own: overlong_buffer.
DAPO: Mapping[str, object] = {
    "advantage": "group_normalized", "num_generations": 8, "cliprange_high": 0.28, "mask_truncated_completions": True,
    "gate": "score_range", "gate_fill": "refill", "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# VAPO (2504.05118): the critic learns Monte-Carlo returns, 50 updates ahead; correct samples are made likelier.
# Correct are those of score 1 and above, as a verifier gives it: a reward on another scale needs its own nll_min_score.
VAPO: Mapping[str, object] = {
    "lam_critic": 1.0, "lam_length_alpha": 0.05, "vf_warmup_updates": 50, "cliprange_high": 0.28,
    "learning_rate": 1e-6, "vf_learning_rate": 2e-6, "kl_coef": 0.0, "temperature": 1.0,
    "nll_coef": 0.1,
}  # fmt: skip

# BPCO (2608.23566, at second hand): the critic is trained first and on whole returns, its values lie in the range of
# the rewards, and advantages are not whitened. The range is the user's: value_min, value_max.
BPCO: Mapping[str, object] = {
    "trust_region": "binary_tv", "divergence_low": 0.2, "divergence_high": 0.2, "value_head": "bounded",
    "lam_critic": 1.0, "lam_length_alpha": 0.4, "whiten_advantages": False, "vf_warmup_updates": 15,
    "learning_rate": 1e-6, "vf_learning_rate": 1e-5, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# SAO (2607.07508, at second hand): one response a prompt, a two-sided band, two critic steps for one of the policy, and
# a critic whose attention stays as it was.
SAO: Mapping[str, object] = {
    "trust_region": "dis", "critic": "decoupled", "num_ppo_epochs": 1, "num_vf_epochs": 2, "vf_frozen": ("*attn.*",),
    "lam_critic": 1.0, "lam_length_alpha": 0.05, "vf_warmup_updates": 10,
    "learning_rate": 1e-6, "vf_learning_rate": 5e-6, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# PACT (2609.26355, at second hand): the critic comes after the policy, on targets weighted by what the policy's steps
# changed, and learns by cross-entropy. The range of returns is the user's: value_min, value_max.
PACT: Mapping[str, object] = {
    "critic": "decoupled", "vf_reweight": "ratio", "vf_reweight_low": 0.0, "vf_reweight_high": 6.0, "value_head": "bce",
    "lam": 1.0, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# AsyPPO (2510.01656, the shares at second hand): two critics, each trained on other responses to a prompt; where they
# agree most the policy learns nothing, where they disagree most no entropy is added. Small critics: value_model_path.
ASYPPO: Mapping[str, object] = {
    "critic_models": 2, "num_generations": 8, "advantage_mask_share": 0.2, "entropy_mask_share": 0.2,
    "entropy_coef": 1e-3, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# DRPO (2606.09821): a token is damped by how far its probability has moved, and pulled back beyond the border.
DRPO: Mapping[str, object] = {
    "trust_region": "drpo", "region_threshold": 12.5, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# CPPO (2606.10968): early tokens have the smaller bound, and what a row has moved so far counts.
CPPO: Mapping[str, object] = {
    "trust_region": "cppo", "region_threshold": 0.15, "cppo_floor": 0.8, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# ScaleRL (2510.13786): capped importance weights, advantages scaled over the batch, rows count alike, and groups whose
# responses all score alike train nothing.
SCALE_RL: Mapping[str, object] = {
    "trust_region": "cispo", "region_low": 0.0, "region_high": 5.0, "advantage": "group_mean",
    "whiten_advantages": True, "loss_aggregation": "sequence_mean", "num_generations": 16, "gate": "score_range",
    "num_ppo_epochs": 1, "kl_coef": 0.0, "temperature": 1.0,
}  # fmt: skip

# MindSpeed-LLM's `--stage trl_ppo`: 256 tokens for prompt and response together, one pass over each rollout, and greedy
# responses. `--ref-model` is the actor too.
MINDSPEED: Mapping[str, object] = {
    "kl_coef": 0.3, "response_length": 128, "max_length": 256, "do_sample": False, "temperature": 1.0,
    "num_ppo_epochs": 1, "log_style": "two_line",
}  # fmt: skip

RECIPES: Mapping[str, Mapping[str, object]] = {
    "decoupled": DECOUPLED,
    "divergence": DIVERGENCE,
    "trl_parity": TRL_PARITY,
    "cispo": CISPO,
    "gspo": GSPO,
    "dapo": DAPO,
    "vapo": VAPO,
    "bpco": BPCO,
    "sao": SAO,
    "pact": PACT,
    "asyppo": ASYPPO,
    "drpo": DRPO,
    "cppo": CPPO,
    "scale_rl": SCALE_RL,
    "mindspeed": MINDSPEED,
}

# By recipe: settings that say nothing there and are those of another one.
SAME_AS: Mapping[str, Mapping[str, str]] = {"mindspeed": {"model_name_or_path": "ref_model_path"}}


def recipe_of(config: PPOConfig) -> str | None:
    """The recipe whose every setting a configuration has, the one with the most if there are several."""
    held = [name for name, recipe in RECIPES.items() if all(vars(config)[each] == recipe[each] for each in recipe)]
    return max(held, key=lambda name: len(RECIPES[name]), default=None)


@with_defaults(DECOUPLED)
class DecoupledPPOConfig(PPOConfig):
    """PPOConfig with the defaults of DECOUPLED."""


@with_defaults(DIVERGENCE)
class DivergencePPOConfig(PPOConfig):
    """PPOConfig with the defaults of DIVERGENCE."""


@with_defaults(TRL_PARITY)
class TRLParityConfig(PPOConfig):
    """PPOConfig with the defaults of TRL_PARITY."""
