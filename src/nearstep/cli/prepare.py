"""`nearstep prepare`: tokenise prompts ahead of a run, by several processes, for `nearstep ppo` to open."""

import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from nearstep.cli.places import absent_places
from nearstep.cli.ppo import stay_offline_if_hub_is_silent
from nearstep.common.telling import tell
from nearstep.config.prepare import PrepareOptions
from nearstep.config.settings import Problem

SECTIONS = (
    ("Input and output", "input"),
    ("Tokenizer", "tokenizer"),
    ("Rows", "dataset_format"),
    ("Work", "workers"),
)


def prepare_problems(options: PrepareOptions) -> Iterator[Problem]:
    """What the command cannot do without."""
    for name, value, meaning in (
        ("input", options.input, "the data, a file, a folder or a hub name"),
        ("output", options.output, "the folder for the prepared data"),
        ("tokenizer", options.tokenizer, "the policy's tokenizer, a folder or a hub name"),
    ):
        if value is None:
            yield Problem(f"{name} is missing: {meaning}", (name,))
    yield from absent_places({"input": options.input, "tokenizer": options.tokenizer})


def run_prepare(options: PrepareOptions) -> None:
    """Prepare the data; SIGTERM leaves no more behind than Ctrl-C."""
    assert options.input is not None
    assert options.tokenizer is not None
    signal.signal(signal.SIGTERM, _end)
    stay_offline_if_hub_is_silent([options.input, options.tokenizer])
    # One core for each process: tokenizers of their own accord use all of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from nearstep.data.preparing.run import prepare

    prepare(options, tell)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
