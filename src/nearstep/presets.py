"""Settings that belong together: the members of the PPO family by name, for Python and for `--recipe`."""

from collections.abc import Mapping
from functools import partial

from nearstep.config import PPOConfig

# The critic on an optimizer of its own, after the policy. Its rate is learning_rate unless vf_learning_rate is given.
DECOUPLED: Mapping[str, object] = {"critic": "decoupled"}

# Divergence PPO (2602.04879): total variation against the policy that sampled, no KL penalty, untempered.
DIVERGENCE: Mapping[str, object] = {"trust_region": "binary_tv", "kl_coef": 0.0, "temperature": 1.0}

# What TRL's PPOTrainer (up to 1.12) does, its defects left out: the score one step after EOS, gradients never cut.
TRL_PARITY: Mapping[str, object] = {"score_position": "after_eos", "max_grad_norm": None}

RECIPES: Mapping[str, Mapping[str, object]] = {
    "decoupled": DECOUPLED,
    "divergence": DIVERGENCE,
    "trl_parity": TRL_PARITY,
}

DecoupledPPOConfig = partial(PPOConfig, **DECOUPLED)  # type: ignore[arg-type]
DivergencePPOConfig = partial(PPOConfig, **DIVERGENCE)  # type: ignore[arg-type]
TRLParityConfig = partial(PPOConfig, **TRL_PARITY)  # type: ignore[arg-type]
