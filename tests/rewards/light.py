"""Rewards in worker processes for the tests; imports no torch, so that fresh processes start at once."""

import os
import time

from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.loading import load_function
from nearstep.rewards.workers.pool import WorkerPool
from nearstep.rewards.workers.source import WorkerReward, function_spec


def low_ids(completion_ids, **kwargs):
    """Share of tokens with an id below 100: varies from row to row, and is easy to learn."""
    return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]


def hangs(completions, **columns):
    time.sleep(60)


def texts(completions: list[str], **columns: list[object]) -> RewardBatch:
    """A batch of plain texts, one token per byte, all of them ended."""
    rows = len(completions)
    return RewardBatch(
        prompts=["Say: "] * rows,
        completions=completions,
        prompt_ids=[[1, 2]] * rows,
        completion_ids=[[*text.encode(), 256] for text in completions],
        finished=[True] * rows,
        columns=columns,
        episodes=list(range(100, 100 + rows)),
    )


def in_workers(file, *names, count=1, timeout=None):
    """Functions of a file as sources that run in `count` processes, and their pool."""
    specs = [f"{file}:{name}" for name in names]
    functions = [load_function(spec) for spec in specs]
    sources = [FunctionReward(function) for function in functions]
    specs = [function_spec(f, j.name, spec) for f, j, spec in zip(functions, sources, specs, strict=True)]
    pool = WorkerPool(specs, count, timeout)
    return [WorkerReward(scorer, number, pool) for number, scorer in enumerate(sources)], pool


def is_elsewhere(completions):
    """Whether this runs in another process than the one whose number is the completion."""
    return [float(os.getpid() != int(text)) for text in completions]
