"""The scoreboard of reliability: 35 checks, each a test of this suite. `make reliability` runs them."""
