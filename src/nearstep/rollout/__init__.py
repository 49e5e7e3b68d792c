"""Engines that play episodes: prompts in, a Rollout with recorded log-probabilities out."""
