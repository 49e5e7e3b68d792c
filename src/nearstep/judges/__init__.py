"""Judges: what compares two texts, or grades one, whatever stands behind it."""
