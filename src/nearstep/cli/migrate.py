"""`nearstep migrate`: a launch script, settings file or Python script of another library, as our command."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearstep.config.settings import Problem, Settings, accepts_old_names, option

NOTE = (
    "Reads TRL (PPO up to 1.12, divergence PPO), OpenRLHF, verl, MindSpeed-LLM and AlignTune; nothing of the file "
    "runs. What has no counterpart is listed as comments. docs/migrations has a page for each."
)


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class MigrateOptions(Settings):
    """What is read, and what is printed."""

    file: str | None = option(
        None, "a launch script (.sh, or any text), a settings file (.yaml, .json), or a Python script", is_place=True
    )
    form: Literal["command", "yaml"] = option("command", "print a command of the shell, or a file for --config")

    def problems(self) -> Iterator[Problem]:
        """No file, or none that is there."""
        if self.file is None:
            yield Problem("say what to read: nearstep migrate FILE", ("file",))
        elif not Path(self.file).is_file():
            yield Problem(f"file = {self.file}: no such file", ("file",))


SECTIONS = (("Migrate", "file"),)


def run_migrate(options: MigrateOptions) -> None:
    """Print ours. Raises ConfigError where nothing that is known stands in the file."""
    from nearstep.migration.migrate import migrate

    assert options.file is not None
    print(migrate(Path(options.file), options.form), end="")
