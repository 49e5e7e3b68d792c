"""The loop, and what happens to a rollout until it has become better weights."""
