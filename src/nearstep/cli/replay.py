"""`nearstep replay`: compute one row of a run again and print every number on its way to the gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.config.settings import Problem, Settings, accepts_old_names, option
from nearstep.reports.run_folder import SETTINGS


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Settings):
    """Which row of which run."""

    run: str | None = option(None, "folder of the run, with its run.yaml", is_place=True)
    update: int = option(
        1, "number of the update; the checkpoint before it must be there, but for the first", at_least=1
    )
    row: int = option(0, "row of the update's batch, from 0", at_least=0)
    output: str | None = option(None, "also write the numbers to this file, one JSON object per token", is_place=True)

    def problems(self) -> Iterator[Problem]:
        """Places that are not there."""
        if self.run is None:
            yield Problem("say which run: nearstep replay RUN --update N --row K", ("run",))
        elif not (Path(self.run) / SETTINGS).is_file():
            yield Problem(f"run = {self.run}: there is no run.yaml", ("run",))


SECTIONS = (("Replay", "run"),)


def run_replay(options: ReplayOptions) -> None:
    """Print the row's tokens in two tables. Raises ConfigError and CheckpointError as going on with the run would."""
    from nearstep.assembly.replay import replay_row
    from nearstep.cli.config_file import read_config_file
    from nearstep.common.secrets import HIDDEN
    from nearstep.config.conversion import Names
    from nearstep.config.ppo import PPOConfig
    from nearstep.config.settings import from_mapping

    assert options.run is not None
    mappings = [name for name, kind in PPOConfig.types.items() if kind == Names]
    kept = read_config_file(Path(options.run) / SETTINGS, mappings)
    known = {name: value for name, value in kept.items() if HIDDEN not in str(value)}  # no reward is asked for here
    config = from_mapping(PPOConfig, known, texts=True)
    row = replay_row(config, Path(options.run), update=options.update, row=options.row)
    print(row.text())
    if options.output is not None:
        row.write(Path(options.output))
