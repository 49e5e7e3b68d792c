"""The four roles (policy, reference, critic, reward model) and the one forward pass that serves them all."""
