"""The mathematics of PPO as pure functions of tensors. Imports torch (and shape annotations) only."""
