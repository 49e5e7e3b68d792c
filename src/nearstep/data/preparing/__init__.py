"""How prompts are tokenised ahead of a run, by several processes, into a folder that a run opens at once."""
