"""`nearstep fork`: begin a new run from a checkpoint of another, with other settings."""

from collections.abc import Sequence

from nearstep.common.errors import ConfigError
from nearstep.common.given_objects import not_named, objects_in
from nearstep.common.model_places import checkpoint_of

NOTE = (
    "RUN is the folder of a run, UPDATE the number of one of its checkpoints. Settings are those of RUN/run.yaml, and "
    "those that are given here. --output_dir is the new run's folder. Weights, optimizers and counters go on; the "
    "checkpoints of the new run name the one that it came from."
)


def fork_words(words: Sequence[str]) -> list[str]:
    """`RUN@UPDATE --name value …` as flags of `nearstep ppo`. Raises ConfigError where there is no such checkpoint."""
    if not words or words[0].startswith("--") or "@" not in words[0]:
        raise ConfigError("say what to fork: nearstep fork RUN@UPDATE --output_dir NEW [--name value …]")
    checkpoint = checkpoint_of(words[0])
    run = checkpoint.parent
    settings = run / "run.yaml"
    if not settings.is_file():
        raise ConfigError(f"{run} has no run.yaml: its settings are not known")
    given = {word.partition("=")[0].replace("-", "_").replace("__", "--", 1) for word in words[1:]}
    if "--config" in given:
        raise ConfigError(f"--config: a fork takes its settings from {settings}; give what changes as flags")
    if "--recipe" in given:
        raise ConfigError(
            f"--recipe fills in what is not given, and {settings} gives every setting: name those that change, as "
            "docs/recipes lists them"
        )
    if "--output_dir" not in given:
        raise ConfigError(f"--output_dir is missing: the folder of the new run; {run} belongs to the old one")
    lacking = not_named(objects_in(settings), [name.removeprefix("--") for name in given])
    if lacking:
        raise ConfigError(
            f"{run} was made of objects in Python, which its run.yaml cannot hold: {'; '.join(lacking)}. Name "
            "something in their place (--model_name_or_path, --dataset_name, --reward_funcs file.py:name, …), or fork "
            f"it in Python, with the same objects and PPOConfig(fork_from={str(checkpoint)!r}, …)"
        )
    anew = [] if "--resume" in given else ["--resume", "none"]
    return ["--config", str(settings), "--fork_from", str(checkpoint), *anew, *words[1:]]
