"""`nearstep score`: judge the completions of a file by exactly the path that training uses."""

from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.judges import judge_lacks
from nearstep.cli.places import absent_places
from nearstep.config_judging import ScoreOptions
from nearstep.settings import Problem


def score_problems(options: ScoreOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    if options.input is None:
        yield Problem("input is missing: a file of prompts and completions", ("input",))
    if options.model_name_or_path is None:
        yield Problem("model_name_or_path is missing: where the policy's tokenizer is", ("model_name_or_path",))
    if Path(options.output).is_dir():
        yield Problem(f"output = {options.output} is a folder; give a file", ("output",))
    yield from absent_places({"input": options.input, "model_name_or_path": options.model_name_or_path})
    yield from judge_lacks(options)


def run_score(options: ScoreOptions) -> None:
    """Judge, write the scores, print a summary."""
    from nearstep.scoring import run

    run.score_file(options).print(options.output)
