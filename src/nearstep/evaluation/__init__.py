"""How good a policy is: on held-out prompts while it trains, and on files of episodes."""
