"""The demo: a TL;DR world made on the spot, three small models, PPO, and a judge that training never saw."""
