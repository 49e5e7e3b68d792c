"""Settings of the recorded runs, all of them known to TRL and to nearstep under one name."""

from typing import Any

SCENARIOS: dict[str, dict[str, Any]] = {
    # TRL's defaults, but a learning rate at which clipping binds within one update.
    "plain": {"learning_rate": 3e-3, "num_ppo_epochs": 4, "optim": "adamw_torch"},
    # Everything away from its default, and plain SGD, whose steps are the gradients.
    "shaped": {
        "learning_rate": 0.3, "num_ppo_epochs": 3, "kl_coef": 0.1, "kl_estimator": "k3", "optim": "sgd",
        "gamma": 0.97, "lam": 0.9, "whiten_rewards": True, "missing_eos_penalty": 1.0, "cliprange": 0.1,
        "cliprange_value": 0.05, "vf_coef": 0.5,
    },
    # Many updates: benchmarks/alignment.py.
    "long": {"learning_rate": 1e-3, "num_ppo_epochs": 4, "optim": "adamw_torch", "missing_eos_penalty": 1.0},
}  # fmt: skip
