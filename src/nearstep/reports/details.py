"""What is recorded of a logged update beside its metrics: a few rows token by token, and profiles over all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.ragged import row_numbers, row_starts, sum_by_row
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import MeanBy, Metrics
from nearstep.reports.records import Record, finite
from nearstep.scale.backend import Backend
from nearstep.training.profiles import TENTHS, profile
from nearstep.training.row_trace import RowTracer, rows_to_trace
from nearstep.training.token_kl import token_kl
from nearstep.types import Experience, Prompts, Rollout, Scores


@dataclass(frozen=True)
class Details:
    """Looks closely at the updates that logging_steps asks for. Every process takes part."""

    config: PPOConfig
    updates: int  # of the whole run
    tracer: RowTracer
    backend: Backend
    decode: Callable[[list[int]], str]  # of token ids, special tokens visible

    def due(self, update: int) -> bool:
        """Whether the settings ask for a record of this update; what callbacks ask for besides has metrics alone."""
        return update % self.config.logging_steps == 0 or update == self.updates

    def row_numbers(self, experience: Experience) -> list[Record]:
        """One number of each kind for every row, as rollouts.jsonl has them."""
        rollout, recomputed = experience.rollout, self.config.anchor == "recomputed"
        counts, by_token = rollout.action_counts, token_kl(experience, self.config.kl_estimator)
        kl = None if by_token is None else sum_by_row(by_token, counts)
        gaps = (probability_ratio(experience.old_logprobs, rollout.logprobs) - 1).abs()
        errors = (experience.returns - experience.values).abs()
        columns = {
            "advantage_abs": _mean_by_row(experience.raw_advantages.abs(), counts),
            "value_error": _mean_by_row(errors, counts) if self.tracer.has_critic else None,
            "kl": kl,
            # Only then the trainer has computed what the engine recorded before the weights moved.
            "mismatch": _max_by_row(gaps, counts) if recomputed else None,
        }
        lists = {name: [None] * len(rollout) if each is None else each.tolist() for name, each in columns.items()}
        return [
            {name: None if value is None else finite(value) for name, value in zip(lists, row, strict=True)}
            for row in zip(*lists.values(), strict=True)
        ]

    def profile(self, experience: Experience, scores: Scores) -> Metrics:
        """What `profile_record` is made of, once those of all processes are added up."""
        return profile(
            experience, scores.scored, self.config.kl_estimator, self.backend, has_critic=self.tracer.has_critic
        )

    def tokens(self, update: int, prompts: Prompts, experience: Experience, finals: Tensor) -> list[Record]:
        """The lines of tokens.jsonl of all processes, on the main one.

        `record_token_rows` of the rows that train: the one of largest mean |A| before whitening, the others drawn at
        random. They cost one forward pass of the policy as it is after the update.
        """
        if self.config.record_token_rows == 0:
            return []
        sizes = _mean_by_row(experience.raw_advantages.abs(), experience.rollout.action_counts)
        gathered = self.backend.gather(torch.where(experience.trained, sizes, -1.0).tolist())
        first = sum(map(len, gathered[: self.backend.rank]))
        sized = enumerate(size for of_process in gathered for size in of_process)
        trained = {row: size for row, size in sized if size >= 0}
        chosen = rows_to_trace(trained, self.config.record_token_rows, seed=self.config.seed, update=update)
        mine = [row - first for row in chosen if first <= row < first + len(experience)]
        with self.backend.gathered(self.tracer.policy.model):
            found = dict(zip(mine, self._traced(experience, mine), strict=True))
        records = [
            (
                first + row,
                {
                    "update": update,
                    "episode": prompts.episodes[row],
                    "prompt": self.decode(prompts.ids[row]),
                    "score": finite(float(finals[row])),
                    "finished": bool(experience.rollout.finished[row]),
                    **columns,
                },
            )
            for row, columns in found.items()
        ]
        traced = dict(pair for of_process in self.backend.gather_to_main(records) for pair in of_process)
        return [traced[row] for row in chosen if row in traced]

    def _traced(self, experience: Experience, rows: Sequence[int]) -> list[Record]:
        """The columns of some rows of this process, in forward passes of limited size."""
        taken = experience.select(torch.tensor(rows, dtype=torch.long, device=experience.scores.device))
        limits = self.config.max_tokens_per_microbatch, self.config.per_device_train_batch_size
        return [columns for part in taken.split(*limits) for columns in self._token_columns(part)]

    def _token_columns(self, rows: Experience) -> Iterator[Record]:
        numbers, counts = self.tracer.numbers(rows, self.tracer.now(rows)), rows.rollout.action_counts
        between = [text for said in texts_between_turns(rows.rollout) for text in said]
        for start, count in zip(row_starts(counts).tolist(), counts.tolist(), strict=True):
            shown = {
                name: None if column is None else [finite(number) for number in column]
                for name, column in numbers.columns(slice(start, start + count)).items()
            }
            ids = rows.rollout.actions[start : start + count].tolist()
            heard = [self.decode(text) if text else "" for text in between[start : start + count]]
            yield {
                "tokens": [self.decode([number]) for number in ids],
                "token_ids": ids,
                **({"before": heard} if any(heard) else {}),
                **shown,
            }


def texts_between_turns(rollout: Rollout) -> list[list[list[int]]]:
    """Of every action of every row, the ids that the policy did not choose between the action before it and it; none
    before a row's first."""
    found = []
    for tokens, is_action in zip(rollout.completion_ids(), rollout.completion_actions(), strict=True):
        of_row: list[list[int]] = []
        heard: list[int] = []
        for token, chosen in zip(tokens, is_action, strict=True):
            if chosen:
                of_row.append(heard)
                heard = []
            else:
                heard.append(token)
        found.append(of_row)
    return found


def profile_record(update: int, merged: Metrics) -> Record | None:
    """The line of profiles.jsonl from the metrics of all processes; None where they have no profile.

    Means, with groups that nothing fell into left out. A decile has about a tenth of all values; where many are alike
    there are fewer.
    """
    tables = {name: table for name, table in merged.by_name.items() if isinstance(table, MeanBy)}
    along, deciles = _part(tables, "along_row/"), _part(tables, "value_deciles/")
    if not along:
        return None
    kinds = ("value", "return", "advantage_abs", "kl")
    return {
        "update": update,
        "value_deciles": [{**means, "count": count} for _, means, count in _groups(deciles)] or None,
        "along_row": [
            {"position": tenth, **{kind: means.get(kind) for kind in kinds}, "count": count}
            for tenth, means, count in _groups(along)
        ],
        "masked": [
            {"sign": "-+"[group // TENTHS], "position": group % TENTHS, **means, "count": count}
            for group, means, count in _groups(_part(tables, "masked/"))
        ],
    }


def _part(tables: Mapping[str, MeanBy], prefix: str) -> dict[str, MeanBy]:
    return {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}


def _groups(tables: Mapping[str, MeanBy]) -> Iterator[tuple[int, dict[str, float | None], int]]:
    """Number, means and size of every group of tables that count alike, less the empty ones; six digits."""
    means = {name: table.means() for name, table in tables.items()}
    counts = next(iter(tables.values())).counts() if tables else []
    for group, count in enumerate(counts):
        if count:
            yield group, {name: finite(float(f"{column[group]:.6g}")) for name, column in means.items()}, count


def _mean_by_row(values: Tensor, counts: Tensor) -> Tensor:
    return sum_by_row(values, counts) / counts.clamp(min=1)


def _max_by_row(values: Tensor, counts: Tensor) -> Tensor:
    return values.new_zeros(len(counts)).scatter_reduce(0, row_numbers(counts), values, "amax")
