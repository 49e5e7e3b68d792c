"""A run's records as pandas frames: `nearstep.read_run`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearstep.reports.run_folder import Line, RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any

WITHIN = {"scores": "reward/", "numbers": "", "extras": "extra/", "columns": "column/"}


@dataclass(frozen=True)
class RunRecords:
    """What a run has recorded so far, as frames that are made when they are first asked for, and kept.

    What a run does not have is an empty frame. Raises DataError for a line that is no JSON object.
    """

    folder: RunFolder

    @property
    def name(self) -> str:
        """`run_name`, or the folder's name."""
        return self.folder.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting by name."""
        return self.folder.settings

    @property
    def changed(self) -> Mapping[str, Mapping[str, Any]]:
        """Value and default of every setting that is not the default."""
        return self.folder.changed

    @property
    def info(self) -> Mapping[str, Any]:
        """Command, versions, commit, devices, batch arithmetic: run_info.json."""
        return self.folder.info

    @cached_property
    def metrics(self) -> DataFrame:
        """One line for each logged update. What was not finite is NaN or infinite here, as it was."""
        return _frame(map(_as_it_was, self.folder.metrics))

    @cached_property
    def evaluations(self) -> DataFrame:
        """One line for each evaluation; the names begin with `eval/`."""
        return _frame(map(_as_it_was, self.folder.evaluations))

    @cached_property
    def rollouts(self) -> DataFrame:
        """One line for each episode; rewards by part as `reward/NAME`, columns of the data set as `column/NAME`, what
        reward functions logged as `extra/NAME`."""
        return _frame(map(_flat, self.folder.lines("rollouts.jsonl")))

    @cached_property
    def samples(self) -> DataFrame:
        """One line for each sample completion: update, query, response, score."""
        return _frame(self.folder.samples)

    @cached_property
    def tokens(self) -> DataFrame:
        """One line for each token of the rows that are recorded closely; `place` counts them in their row from 0."""
        return _frame(token for line in self.folder.tokens for token in _tokens(line))

    @cached_property
    def along_row(self) -> DataFrame:
        """By update and tenth of the response (`position`): mean value, return, |advantage| and KL."""
        return _frame(_table(self.folder.profiles, "along_row"))

    @cached_property
    def value_deciles(self) -> DataFrame:
        """By update and tenth of all values, from the lowest: mean value and mean return."""
        return _frame(_table(self.folder.profiles, "value_deciles"))

    @cached_property
    def masked(self) -> DataFrame:
        """By update, sign of the advantage and tenth of the response: the share that the trust region masked."""
        return _frame(_table(self.folder.profiles, "masked"))

    @cached_property
    def alerts(self) -> DataFrame:
        """What the rules of health said, in the order in which they spoke."""
        return _frame(self.folder.alerts)

    @cached_property
    def eval_rollouts(self) -> DataFrame:
        """One line for each row of each evaluation, its rewards by part as `reward/NAME`."""
        return _frame(map(_flat, self.folder.eval_rollouts))


def read_run(folder: str | PathLike[str]) -> RunRecords:
    """The records of a run that goes on or is over. Raises DataError where the folder is none of a run."""
    return RunRecords(RunFolder(Path(folder)))


def _frame(lines: Iterator[Line] | Sequence[Line]) -> DataFrame:
    import pandas

    frame = pandas.DataFrame(list(lines))
    empty = [name for name in frame if frame[name].isna().all()]
    return frame.astype(dict.fromkeys(empty, float))


def _as_it_was(line: Line) -> Line:
    broken = {name: float(number) for name, number in line.get("not_finite", {}).items()}
    return {name: value for name, value in line.items() if name != "not_finite"} | broken


def _flat(line: Line) -> Line:
    found: dict[str, Any] = {}
    for name, value in line.items():
        if name in WITHIN and isinstance(value, Mapping):
            found |= {f"{WITHIN[name]}{inner}": each for inner, each in value.items()}
        else:
            found[name] = value
    return found


def _tokens(line: Line) -> Iterator[Line]:
    """One mapping for each token of a row: lists give one value each, what is no list belongs to all of them."""
    lists = {name: values for name, values in line.items() if isinstance(values, list)}
    of_row = {name: value for name, value in line.items() if name not in lists}
    for place, token in enumerate(line["tokens"]):
        of_token = {name: values[place] for name, values in lists.items() if name != "tokens"}
        yield {**of_row, "place": place, "token": token, **of_token}


def _table(lines: Sequence[Line], name: str) -> Iterator[Line]:
    return ({"update": line["update"], **row} for line in lines for row in line[name] or ())
