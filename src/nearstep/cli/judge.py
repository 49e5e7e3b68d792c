"""`nearstep judge`: compare two files of completions, or completions with references. What it needs beyond settings."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.places import absent_places
from nearstep.config.judges import JudgeOptions, is_url
from nearstep.config.settings import Problem

NOTE = (
    "nearstep judge A.jsonl B.jsonl --judge http://127.0.0.1:8000/v1#model compares row by row (matched by id, else by "
    "prompt); nearstep judge A.jsonl --references COLUMN compares with a column. response0 is the first file. Answers "
    "of a server are cached: the same command goes on where it was interrupted."
)


def judge_problems(options: JudgeOptions) -> Iterator[Problem]:
    """Places that are not there, and a key that is not set."""
    for name in options.files:
        yield from absent_places({"files": name})
    if Path(options.output).is_dir():
        yield Problem(f"output = {options.output} is a folder; give a file", ("output",))
    if options.judge is not None and not is_url(options.judge):
        file = re.match(r"(.*\.py):\w+$", options.judge)
        yield from absent_places({"judge": file[1] if file else options.judge})
    if options.key_env is not None and not os.environ.get(options.key_env):
        yield Problem(f"key_env: {options.key_env} is not set in the environment", ("key_env",))


def run_judge(options: JudgeOptions) -> None:
    """Judge, write the judgements, print the counts and rates."""
    from nearstep.evaluation.judging import judge_files, require_judgements

    result = judge_files(options)
    print(result.as_json() if options.json else "\n".join(result.lines()))
    require_judgements(result)
