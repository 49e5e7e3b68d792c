"""Attention within the rows of a packed input."""
