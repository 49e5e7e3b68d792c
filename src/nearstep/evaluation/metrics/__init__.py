"""What a model, a file of completions or a reward model is worth: pure functions of numbers and texts."""
