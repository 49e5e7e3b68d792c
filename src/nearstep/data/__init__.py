"""Where prompts come from: files, hub and Python objects, tokenised once and handed out update by update."""
