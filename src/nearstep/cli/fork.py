"""`nearstep fork`: begin a new run from a checkpoint of another, with other settings."""

from collections.abc import Sequence
from pathlib import Path

from nearstep.common.errors import ConfigError
from nearstep.reports.run_folder import CHECKPOINT, SETTINGS, checkpoints, update_of

NOTE = (
    "RUN is the folder of a run, UPDATE the number of one of its checkpoints. Settings are those of RUN/run.yaml, and "
    "those that are given here. --output_dir is the new run's folder. Weights, optimizers and counters go on; the "
    "checkpoints of the new run name the one that it came from."
)


def fork_words(words: Sequence[str]) -> list[str]:
    """`RUN@UPDATE --name value …` as flags of `nearstep ppo`. Raises ConfigError where there is no such checkpoint."""
    if not words or words[0].startswith("--") or "@" not in words[0]:
        raise ConfigError("say what to fork: nearstep fork RUN@UPDATE --output_dir NEW [--name value …]")
    name, _, update = words[0].rpartition("@")
    run = Path(name).expanduser()
    checkpoint, settings = run / f"{CHECKPOINT}{update}", run / SETTINGS
    if not checkpoint.is_dir():
        found = [str(update_of(folder)) for folder in checkpoints(run)]
        there = f"there are those of updates {', '.join(found)}" if found else "there is none"
        raise ConfigError(f"{run} has no checkpoint of update {update}: {there}")
    if not settings.is_file():
        raise ConfigError(f"{run} has no run.yaml: its settings are not known")
    given = {word.partition("=")[0] for word in words[1:]}
    if "--config" in given:
        raise ConfigError(f"--config: a fork takes its settings from {settings}; give what changes as flags")
    if "--output_dir" not in given:
        raise ConfigError(f"--output_dir is missing: the folder of the new run; {run} belongs to the old one")
    anew = [] if "--resume" in given else ["--resume", "none"]
    return ["--config", str(settings), "--fork_from", str(checkpoint), *anew, *words[1:]]
