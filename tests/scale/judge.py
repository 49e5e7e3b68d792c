"""A judge that two processes can load."""


def length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]
