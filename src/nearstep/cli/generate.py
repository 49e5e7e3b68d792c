"""`nearstep generate`: write the completions of a model to a file. What the command needs beyond its settings."""

from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.places import absent_places
from nearstep.cli.ppo import stay_offline_if_hub_is_silent
from nearstep.config.generating import GenerateOptions
from nearstep.config.settings import Problem

NOTE = (
    "Every line has prompt, completion, finished (whether it ended by itself), and the columns of the data. "
    "nearstep score, nearstep judge and nearstep eval --completions read the file."
)


def generate_problems(options: GenerateOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    if options.model_name_or_path is None:
        yield Problem("model_name_or_path is missing: the model that writes", ("model_name_or_path",))
    if options.dataset_name is None:
        yield Problem("dataset_name is missing: the prompts, a file, a folder or a hub name", ("dataset_name",))
    if Path(options.output).is_dir():
        yield Problem(f"output = {options.output} is a folder; give a file", ("output",))
    yield from absent_models({"model_name_or_path": options.model_name_or_path, "base_model": options.base_model})
    yield from absent_places({"dataset_name": options.dataset_name})


def absent_models(places: dict[str, str | None]) -> Iterator[Problem]:
    """The same for models: RUN@UPDATE names a folder of a run, which tells itself what it lacks."""
    return absent_places({name: place for name, place in places.items() if place is not None and "@" not in place})


def run_generate(options: GenerateOptions) -> None:
    """Write, and say what was written."""
    stay_offline_if_hub_is_silent([place for place in (options.model_name_or_path, options.dataset_name) if place])
    from nearstep.evaluation.generate_file import generate_file

    print(generate_file(options))
