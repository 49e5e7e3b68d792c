"""Completions from a file are judged by the path that training uses."""
