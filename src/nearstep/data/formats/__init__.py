"""Which shapes data sets come in, and how each becomes prompts and preference pairs."""
