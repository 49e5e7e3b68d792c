"""Which folder holds the model that a place means: a model folder itself, a run, or one of a run's checkpoints."""

from pathlib import Path

from nearstep.common.errors import ConfigError

MODEL_FILES = ("config.json", "adapter_config.json")


def model_place(name: str) -> str:
    """The model folder that `name` means; a hub name, and what is no folder, as it is.

    A run or a checkpoint (RUN/checkpoint-N, or RUN@N) means the policy in it. Raises ConfigError where there is no such
    checkpoint.
    """
    folder = Path(name)
    if "@" in name and not folder.exists():
        folder = checkpoint_of(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in MODEL_FILES) and (folder / "policy").is_dir():
        return str(folder / "policy")
    return str(folder) if folder.is_dir() else name


def checkpoint_of(name: str) -> Path:
    """The folder of RUN@UPDATE. Raises ConfigError saying which checkpoints the run has."""
    run, _, update = name.rpartition("@")
    folder = Path(run).expanduser()
    checkpoint = folder / f"checkpoint-{update}"
    if not checkpoint.is_dir():
        found = sorted(int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal())
        there = f"there are those of updates {', '.join(map(str, found))}" if found else "there is none"
        raise ConfigError(f"{folder} has no checkpoint of update {update}: {there}")
    return checkpoint
