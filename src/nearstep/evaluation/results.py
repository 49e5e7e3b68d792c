"""What an evaluation found: figures by name, as a table, as JSON, and as a mapping of plain numbers."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

import nearstep
from nearstep.common.errors import TrainingError
from nearstep.evaluation.metric_table import described
from nearstep.evaluation.metrics.figures import Figure

NAME = "eval_results.json"
LOG_WIDTH = 120  # where there is no terminal whose width counts


@dataclass(frozen=True)
class EvalResults(Mapping[str, float | None]):
    """The value of every figure by its name; `figures` has n and the interval beside it."""

    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, object] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float | None:
        return self.figures[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def record(self) -> dict[str, object]:
        """The content of eval_results.json; null for what is not there."""
        return {
            "schema": 1,
            "nearstep": nearstep.__version__,
            **self.inputs,
            "metrics": {
                name: {**dataclasses.asdict(figure), "unit": described(name).counts}
                for name, figure in self.figures.items()
            },
            "notes": list(self.notes),
        }

    def save(self, folder: Path) -> Path:
        """Write the file as a whole. Raises TrainingError where it cannot be written."""
        path, unfinished = folder / NAME, folder / f".{NAME}.unfinished"
        text = json.dumps(self.record(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(unfinished, path)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error}. Give another output_dir.") from error
        return path

    def table(self) -> Table:
        """A line for each figure."""
        table = Table(box=None, pad_edge=False)
        table.add_column("metric", no_wrap=True)
        for title in ("value", "95 % from", "to", "n"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("of, or why not")
        for name, figure in self.figures.items():
            left_out = f", {figure.left_out} left out" if figure.left_out else ""
            of = figure.why if figure.value is None else f"{described(name).counts}{_prompts(figure)}"
            cells = [_number(figure.value), _number(figure.low), _number(figure.high), str(figure.n or "")]
            table.add_row(name, *cells, f"{of or ''}{left_out}")
        return table

    def print(self) -> None:
        """Show the table and the notes."""
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console.width = LOG_WIDTH
        console.print(self.table())
        for note in self.notes:
            console.print(note)


def _prompts(figure: Figure) -> str:
    return "" if figure.prompts in (0, figure.n) else f" of {figure.prompts} prompt{'s' * (figure.prompts > 1)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
