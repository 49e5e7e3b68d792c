"""PPO for language models: one loop, one trainer, independent axes."""
