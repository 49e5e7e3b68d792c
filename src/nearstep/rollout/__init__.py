"""Engines that generate episodes: prompts in, a Rollout with recorded log-probabilities out."""
