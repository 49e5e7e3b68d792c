"""`nearstep demo`: the whole of RLHF in a few minutes, in a world made on the spot."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.config.settings import Problem, Settings, accepts_old_names, option


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class DemoOptions(Settings):
    """Settings of the demo."""

    output: str = option("runs/demo", "folder for models, data, metrics and the report; made if missing", is_place=True)
    seed: int = option(0, "every random number of the demo derives from it", at_least=0)
    quick: bool = option(False, "a much shorter run, only to see that all parts work; its table proves nothing")

    def problems(self) -> Iterator[Problem]:
        """Nothing but the place can be wrong."""
        if Path(self.output).is_file():
            yield Problem(f"output = {self.output} is a file; give a folder", ("output",))


SECTIONS = (("Demo", "output"),)


def run_demo(options: DemoOptions) -> None:
    """Make the world, train the three models, and print the table."""
    from nearstep.demo import run

    run.run_demo(output=Path(options.output), seed=options.seed, quick=options.quick)
