"""How completions are written to a file, as a whole or not at all, and gone on with where that was interrupted."""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nearstep.common.errors import ConfigError, DataError, TrainingError, shorten
from nearstep.config.generating import GenerateOptions
from nearstep.data.prompts import PromptSet
from nearstep.evaluation.writing import WrittenBatch
from nearstep.reports.records import JsonLines, Record
from nearstep.rewards.decoding import completion_text

FIELDS = ("row", "place", "sample", "prompt", "completion", "finished", "response_length")
FREE = ("resume", "batch_size", "max_tokens_per_microbatch", "use_cpu")  # settings that change no completion


def completion_records(written: WrittenBatch, prompts: PromptSet) -> list[Record]:
    """A line for each completion: its prompt as the data has it, the text, whether it ended by itself, and all columns.

    A column with the name of one of our fields is called data_NAME.
    """
    rollout, tokenizer = written.rollout, prompts.tokenizer
    rows = zip(
        written.numbers, written.samples, written.prompts.inputs, rollout.completion_ids(), rollout.finished.tolist(),
        strict=True,
    )  # fmt: skip
    return [
        {
            "row": int(prompts.table_rows[number]),
            "place": prompts.position(number),
            "sample": sample,
            "prompt": shown,
            "completion": completion_text(ids, finished, tokenizer),
            "finished": finished,
            "response_length": len(ids),
            **carried_columns(prompts, number),
        }
        for number, sample, shown, ids, finished in rows
    ]


def carried_columns(prompts: PromptSet, number: int) -> dict[str, object]:
    """What the data set has beside the prompt; the answer in it, if it has one, as `reference`."""
    row = prompts.prompt(number).row
    layout = prompts.reader.layout
    taken = {"prompt"} if layout.format is None else {layout.format.column}
    if layout.gives_reference(prompts.table.columns):
        taken.add("completion")  # it stands there as the reference
    kept = {name: plain(value) for name, value in row.items() if name not in taken}
    return {f"data_{name}" if name in FIELDS else name: value for name, value in kept.items()}


def plain(value: object) -> object:
    """A value as strict JSON holds it: what is not finite as null, what JSON does not know as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class CompletionFile:
    """The file under its unfinished name, and the settings that it is written with beside it."""

    def __init__(self, options: GenerateOptions) -> None:
        """Begin anew, or go on if the settings say so. Raises ConfigError where they are not those of the beginning."""
        self.output = Path(options.output)
        self.unfinished = self.output.with_name(self.output.name + ".unfinished")
        self.beginning = self.output.with_name(self.output.name + ".unfinished.json")
        settings = {name: plain(value) for name, value in dataclasses.asdict(options).items() if name not in FREE}
        if options.resume and self.unfinished.exists() and self.beginning.exists():
            before = json.loads(self.beginning.read_text(encoding="utf-8"))
            changed = sorted(name for name in settings if settings[name] != before.get(name))
            if changed:
                shown = ", ".join(f"{name} was {shorten(before.get(name))}" for name in changed)
                raise ConfigError(f"resume: {self.unfinished} was begun with other settings: {shown}")
        else:
            self.unfinished.unlink(missing_ok=True)
            try:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                self.beginning.write_text(json.dumps(settings, indent=1), encoding="utf-8")
            except OSError as error:
                raise TrainingError(f"{self.beginning} cannot be written: {error}. Give another output") from error
        self._file = JsonLines(self.unfinished)

    def written(self, prompts: PromptSet, count: int) -> int:
        """How many completions are there already. Raises DataError where they are not of these prompts."""
        found = 0
        for found, line in enumerate(read_lines(self.unfinished), start=1):
            number, sample = divmod(found - 1, count)
            here = number < len(prompts)
            if not here or (line["row"], line["sample"]) != (int(prompts.table_rows[number]), sample) or (
                line["prompt"] != plain(prompts.prompt(number).shown)
            ):  # fmt: skip
                raise DataError(
                    f"{self.unfinished}, line {found}: it is no completion of these prompts: the data changed"
                )
        return found

    def write(self, records: Sequence[Record]) -> None:
        """Append lines, which are there for whoever goes on."""
        self._file.write(records)

    def close(self) -> None:
        """Leave what is written to be gone on with."""
        self._file.close()

    def finish(self) -> None:
        """Give the file its name. Raises TrainingError where it cannot be written."""
        self._file.close()
        try:
            if self.output.suffix.lower() == ".csv":
                whole = self.output.with_name(self.output.name + ".whole")
                write_csv(whole, list(read_lines(self.unfinished)))
                os.replace(whole, self.output)
                self.unfinished.unlink()
            else:
                os.replace(self.unfinished, self.output)
            self.beginning.unlink()
        except OSError as error:
            raise TrainingError(f"{self.output} cannot be written: {error}. Give another output") from error


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a file of JSON lines; none of one that is not there."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """The same as a table: what is no text stands as JSON, null as an empty cell."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_cell(record.get(name)) for name in columns] for record in records])


def _cell(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
