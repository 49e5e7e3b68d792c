"""Rewards from a server, and the server."""
