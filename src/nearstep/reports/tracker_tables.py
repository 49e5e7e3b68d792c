"""How sample completions become a table of text at the trackers that show such tables."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from nearstep.reports.metrics import escape_cell
from nearstep.reports.records import sample_records
from nearstep.training.evaluated import Sample

TABLE = "samples"
COLUMNS = ("update", *(column.name for column in fields(Sample)))


def track_samples(trackers: Sequence[Any], update: int, rows: Sequence[Sample]) -> None:
    """Hand the samples after an update to tensorboard as Markdown, to wandb and trackio as a table of theirs."""
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    lines = [list(record.values()) for record in sample_records(update, rows)]
    for tracker in trackers:
        match tracker:
            case TensorBoardCallback(tb_writer=writer) if writer is not None:
                writer.add_text(TABLE, markdown_table(lines), update)
                writer.flush()
            case WandbCallback(_wandb=wandb) if wandb is not None:
                table = wandb.Table(columns=list(COLUMNS), data=lines)
                wandb.log({TABLE: table, "train/global_step": update})
            case TrackioCallback(_trackio=trackio):
                import pandas

                table = trackio.Table(dataframe=pandas.DataFrame(lines, columns=list(COLUMNS)))
                trackio.log({TABLE: table, "train/global_step": update})
            case _:
                pass


def markdown_table(lines: Sequence[Sequence[object]]) -> str:
    """The lines as a table in Markdown; text of models is shown as it is."""
    rows = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    rows += [" | ".join(_cell(value) for value in line) for line in lines]
    return "\n".join(f"| {row} |" for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = "".join(f"\\{letter}" if letter in "\\`*_[]<>#" else letter for letter in str(value))
    return escape_cell(plain).replace("\r", " ")
