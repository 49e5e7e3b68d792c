"""Settings: every field, what it does, which are refused together. Standard library only."""
