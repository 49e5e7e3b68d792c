"""Runs that are well, and runs that are made ill on purpose: what the rules of health say of them."""
