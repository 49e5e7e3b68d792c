"""`nearstep score`: score the completions of a file by exactly the path that training uses."""

from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.places import absent_places
from nearstep.cli.reward_sources import reward_lacks
from nearstep.config.judge_files import ScoreOptions
from nearstep.config.settings import Problem


def score_problems(options: ScoreOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    if options.input is None:
        yield Problem("input is missing: a file of prompts and completions", ("input",))
    if options.model_name_or_path is None:
        yield Problem("model_name_or_path is missing: where the policy's tokenizer is", ("model_name_or_path",))
    if Path(options.output).is_dir():
        yield Problem(f"output = {options.output} is a folder; give a file", ("output",))
    yield from absent_places({"input": options.input, "model_name_or_path": options.model_name_or_path})
    yield from reward_lacks(options)


def run_score(options: ScoreOptions) -> None:
    """Score, write the scores, print a summary."""
    from nearstep.evaluation import score_file

    score_file.score_file(options).print(options.output)
