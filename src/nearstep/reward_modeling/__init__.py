"""Reward models: from preference pairs, or from the scores of other rewards, to a folder that PPO opens."""
