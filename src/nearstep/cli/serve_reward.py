"""`nearstep serve-reward`: rewards of this machine for trainers elsewhere."""

import os
from collections.abc import Iterator

from nearstep.cli.reward_sources import reward_lacks
from nearstep.config.judge_files import ServeOptions
from nearstep.config.settings import Problem


def serve_problems(options: ServeOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    yield from reward_lacks(options)
    if options.token_env is not None and not os.environ.get(options.token_env):
        yield Problem(f"token_env: {options.token_env} is not set in the environment", ("token_env",))


def run_serve(options: ServeOptions) -> None:
    """Load the rewards and serve until interrupted."""
    from nearstep.rewards.remote.server import run
    from nearstep.scale.torch_backend import torch_backend

    run.serve(options, torch_backend(use_cpu=options.use_cpu).place)
