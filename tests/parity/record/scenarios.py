"""Settings of the recorded runs, all of them known to TRL and to nearstep under one name."""

from typing import Any

Settings = dict[str, Any]

# TRL's defaults, but a learning rate at which clipping binds within one update.
PLAIN: Settings = {"learning_rate": 3e-3, "num_ppo_epochs": 4, "optim": "adamw_torch"}

# Everything away from its default, and plain SGD, whose steps are the gradients.
SHAPED: Settings = {
    "learning_rate": 0.3, "num_ppo_epochs": 3, "kl_coef": 0.1, "kl_estimator": "k3", "optim": "sgd", "gamma": 0.97,
    "lam": 0.9, "whiten_rewards": True, "missing_eos_penalty": 1.0, "cliprange": 0.1, "cliprange_value": 0.05,
    "vf_coef": 0.5,
}  # fmt: skip

SCENARIOS: dict[str, Settings] = {
    "plain": PLAIN,
    "shaped": SHAPED,
    # The same over many updates, for benchmarks/alignment.py: smaller steps, and the epsilon of the N+ study
    # (2403.17031), since with 1e-8 Adam makes whole steps of gradients that are nothing but rounding.
    "plain_long": {**PLAIN, "learning_rate": 3e-4, "adam_epsilon": 1e-5},
    "shaped_long": {**SHAPED, "learning_rate": 0.01},
}

# Divergence PPO over many updates, with steps large enough that some tokens leave the region.
DIVERGENCE: Settings = {
    "learning_rate": 3e-4, "num_ppo_epochs": 4, "optim": "adamw_torch", "adam_epsilon": 1e-5, "divergence_top_k": 5,
}  # fmt: skip
