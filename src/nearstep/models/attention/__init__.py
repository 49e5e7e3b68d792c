"""Attention that knows the borders of packed rows."""
