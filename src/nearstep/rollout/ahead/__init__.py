"""Generating in a process of its own, ahead of the update that trains on it."""
