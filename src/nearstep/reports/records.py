"""Which files record a run: strict JSON, one object per line, appended and flushed by the main process alone."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import BinaryIO

from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, sum_by_row
from nearstep.common.errors import TrainingError
from nearstep.reports.metrics import Numbers
from nearstep.training.evaluated import Sample
from nearstep.types import Prompts, Rollout, Scores

Record = Mapping[str, object]
PLACE = ("update", "episode", "epoch")  # of a line of metrics.jsonl
BLOCK_BYTES = 1 << 16


class JsonLines:
    """A file of JSON objects, one per line. An existing file is continued, less a torn last line.

    Raises TrainingError where it cannot be written.
    """

    def __init__(self, path: Path, largest_mib: float | None = None) -> None:
        """A file that is to be no larger than `largest_mib`, but for what is written at once."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _cut_torn_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error}. Give another place.") from error
        self.path = path
        self._largest_bytes = math.inf if largest_mib is None else largest_mib * 2**20

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be written: in a run that goes on it may be so from the beginning."""
        return self._file.tell() >= self._largest_bytes

    def write(self, records: Sequence[Record]) -> None:
        """Append the records, so that a reader sees them at once: all, or none. ValueError for NaN and infinity."""
        lines = [json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n" for record in records]
        # A lone surrogate becomes \udXXX, which is what JSON wants for it.
        left, end = memoryview("".join(lines).encode("utf-8", "backslashreplace")), self._file.tell()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise TrainingError(f"{self.path} cannot be written: {error}") from error

    def close(self) -> None:
        """Close the file, and leave none behind that nothing was written to; closing twice is fine."""
        self._file.close()
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()


def set_aside(path: Path) -> Path | None:
    """Rename the records of an earlier run, `metrics.jsonl` to `metrics.1.jsonl` and so on; None if there are none."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    names = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def metrics_record(*, update: int, episode: int, epoch: int | float, numbers: Numbers) -> Record:
    """One line of metrics.jsonl. What is not finite stands as null, and `not_finite` says what it was.

    >>> metrics_record(update=1, episode=8, epoch=0.5, numbers={"lr": 0.1, "eps": float("nan")})
    {'update': 1, 'episode': 8, 'epoch': 0.5, 'lr': 0.1, 'eps': None, 'not_finite': {'eps': 'nan'}}
    """
    broken = {name: str(float(number)) for name, number in numbers.items() if not math.isfinite(number)}
    place: Record = dict(zip(PLACE, (update, episode, epoch), strict=True))
    shown = {name: finite(number) for name, number in numbers.items() if name not in place}
    return {**place, **shown, **({"not_finite": broken} if broken else {})}


def rollout_records(
    *,
    update: int,
    prompts: Prompts,
    decode: Callable[[list[int]], str],
    judged: Callable[[list[int], bool], str],
    rollout: Rollout,
    scores: Scores,
    final_scores: Float[Tensor, " rows"],
    numbers: Sequence[Record],
) -> list[Record]:
    """The lines of rollouts.jsonl, one per episode, plain enough to be sent between processes.

    `final_scores` are the totals after the rules for missing stop tokens, `extras` the columns that reward functions
    logged; null stands where a part of the reward did not apply, or nothing was scored.
    `decode` should show special tokens of prompts; `judged` gives the text of a response that rewards were given.
    `numbers` are those of `Details.row_numbers`. Everything that rewards were given is there too, so that
    `nearstep score` can score the episodes again.
    """
    fields, finals, finished = score_fields(scores, rollout), final_scores.tolist(), rollout.finished.tolist()
    lengths, ends, places = rollout.action_counts.tolist(), rollout.ends_episode.tolist(), row_places(rollout)
    return [
        {
            "update": update,
            "episode": prompts.episodes[row],
            "prompt": decode(prompts.ids[row]),
            "completion": judged(completion, finished[row]),
            **fields[row],
            **({} if ends[row] else {"total_score": None}),  # the score of an episode stands at its last row
            "final_score": finite(finals[row]),
            "finished": finished[row],
            "response_length": lengths[row],
            **places[row],
            "numbers": numbers[row],
            "input": prompts.inputs[row],
            "columns": {name: column[row] for name, column in prompts.columns.items() if _is_json(column[row])},
            "prompt_ids": prompts.ids[row],
            "completion_ids": completion,
        }
        for row, completion in enumerate(rollout.completion_ids())
    ]


def row_places(rollout: Rollout) -> list[dict[str, object]]:
    """What only rows of few engines have: which segment of its episode each is, from 0, how many turns it has, and the
    versions of the oldest and newest weights that sampled it."""
    found: list[dict[str, object]] = [{} for _ in range(len(rollout))]
    if rollout.episodes is not None:
        for row, segment in enumerate(places_in_row(rollout.segment_counts).tolist()):
            found[row]["segment"] = segment
    counts = rollout.action_counts
    for row, turns in enumerate(sum_by_row(rollout.turn_starts.long(), counts).tolist()):
        if turns > 1:
            found[row]["turns"] = turns
    if rollout.action_versions is not None:
        for row, versions in enumerate(rollout.action_versions.split(counts.tolist())):
            found[row]["versions"] = [int(versions.min()), int(versions.max())]
    return found


def score_fields(scores: Scores, rollout: Rollout) -> list[Record]:
    """The rewards of each row: every part, the total, token rewards, why a part failed, extras."""
    parts = {name: part.tolist() for name, part in scores.parts.items()}
    totals = scores.with_dense(scores.total, rollout).tolist()
    dense = None if scores.dense is None else scores.dense.cpu().split(rollout.action_counts.tolist())
    fields: list[Record] = []
    for row, total in enumerate(totals):
        failed = {name: reasons[row] for name, reasons in scores.failures.items() if row in reasons}
        fields.append({
            "scores": {name: finite(part[row]) for name, part in parts.items()},
            "total_score": finite(total),
            **({} if dense is None else {"token_rewards": dense[row].tolist()}),
            **({"failures": failed} if failed else {}),
            "extras": {name: _plain_value(column[row]) for name, column in scores.extras.items()},
        })  # fmt: skip
    return fields


def sample_records(update: int, rows: Sequence[Sample]) -> list[Record]:
    """The lines of samples.jsonl: the sample completions after an update, and what the start answered."""
    return [{"update": update, **asdict(sample), "score": finite(sample.score)} for sample in rows]


def _plain_value(value: object) -> object:
    """What JSON can hold, as it is; anything else as text."""
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _is_json(value: object) -> bool:
    """Whether strict JSON can hold a value as it is."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def finite(number: int | float) -> int | float | None:
    """The number, or None for what strict JSON cannot hold."""
    return number if math.isfinite(number) else None


def _cut_torn_line(path: Path) -> None:
    """End the file at its last line break: a crash may have left half a record behind it."""
    with path.open("r+b") as file:
        file.truncate(_end_of_last_line(file))


def _end_of_last_line(file: BinaryIO) -> int:
    """Position after the last line break, 0 where there is none; read from the end: files may be large."""
    start = file.seek(0, 2)
    while start > 0:
        block_end, start = start, max(0, start - BLOCK_BYTES)
        file.seek(start)
        found = file.read(block_end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0
