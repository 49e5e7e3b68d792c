"""How the tests of built-in rewards ask them."""


def values(reward, *completions, **columns):
    """What a reward says of completions; prompts and token ids are there as in a run."""
    given = {
        "prompts": ["Say: "] * len(completions),
        "completion_ids": [[0] * len(str(completion).split()) for completion in completions],
        "trainer_state": None,
        "log_extra": None,
        "log_metric": None,
    }
    return reward(completions=list(completions), **{**given, **columns})


def value(reward, completion, **columns):
    """What a reward says of one completion, each column given by its one cell."""
    (said,) = values(reward, completion, **{name: [cell] for name, cell in columns.items()})
    return said
