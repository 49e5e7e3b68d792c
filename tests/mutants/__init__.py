"""Bugs planted by a program: what share of them the tests notice. `make mutants` runs it."""
