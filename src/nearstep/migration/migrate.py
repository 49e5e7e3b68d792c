"""From a file of another library to our command: what kind of file it is, whose settings, how ours are written."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from nearstep.common.errors import ConfigError
from nearstep.migration.convert import convert
from nearstep.migration.foreign import Foreign
from nearstep.migration.imports import with_our_imports
from nearstep.migration.launches import launch
from nearstep.migration.notebooks import code_in
from nearstep.migration.scripts import read_script
from nearstep.migration.settings_files import read_settings_file
from nearstep.migration.shell import commands, doubts
from nearstep.migration.write import as_command, as_yaml

KNOWN = (
    "TRL (PPO, DPPO), OpenRLHF (openrlhf.cli.train_ppo_ray), verl (verl.trainer.main_ppo), MindSpeed-LLM "
    "(--stage trl_ppo) and AlignTune (create_rl_trainer)"
)
MOST_BYTES = 2_000_000


def migrate(path: Path, form: Literal["command", "yaml"] = "command") -> str:
    """Our command, or settings file, for a launch script, settings file or Python script of another library.

    Nothing of the file runs. Raises ConfigError for a file that cannot be read, or in which none of these libraries is
    found.
    """
    text = _text(path)
    found = [*_found(path, text)]
    if not found:
        raise ConfigError(f"{path}: no command of a library that is known here. Known are {KNOWN}")
    if found[0].library == "trl_classic":
        notes = [
            f"# From {path}, a script of TRL up to 0.11: its loop stays, its imports come from nearstep.classic.",
            "# docs/migrations/trl_classic.md says what differs. Settings are checked when it starts.",
        ]
        return "\n".join(notes) + "\n" + with_our_imports(_python(path, text))
    write = as_yaml if form == "yaml" else as_command
    return "\n".join(write(convert(each), f"{path}{each.place}") for each in found)


def _found(path: Path, text: str) -> list[Foreign]:
    match path.suffix.lower():
        case ".py":
            return [read_script(text, str(path))]
        case ".ipynb":
            return _in_notebook(path, text)
        case ".yaml" | ".yml" | ".json":
            return [read_settings_file(text, str(path))]
        case _:
            return _launched(text)


def _in_notebook(path: Path, text: str) -> list[Foreign]:
    """Its commands of the shell, else its Python."""
    python, shell = code_in(text, str(path))
    return _launched(shell) or [read_script(python, str(path))]


def _launched(text: str) -> list[Foreign]:
    """What the commands of a shell script start, with what should be known of how they were read."""
    words = list(commands(text))
    notes = tuple(doubts(text, words))
    return [replace(each, notes=(*each.notes, *notes)) for each in map(launch, words) if each is not None]


def _python(path: Path, text: str) -> str:
    return code_in(text, str(path))[0] if path.suffix.lower() == ".ipynb" else text


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes: give the script that launches the run")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: byte {error.start}") from None
