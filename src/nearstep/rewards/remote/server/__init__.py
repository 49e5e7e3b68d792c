"""Rewards of this machine are served to trainers elsewhere."""
