"""Which rollouts of other runs a critic may train on before the first update, and how they are dealt to processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nearstep.algorithm.ragged import take_rows
from nearstep.common.errors import ConfigError, DataError
from nearstep.scale.backend import Backend
from nearstep.training.replay import ROLLOUT, RolloutFolder
from nearstep.training.rollout_origin import NAME, RolloutOrigin, read_origin, updates_of
from nearstep.types import Rollout, Scores

SETTING = "vf_pretrain_rollouts"


@dataclass(frozen=True)
class StoredRollouts:
    """A folder of dump_rollouts, whatever number of processes has written it."""

    folder: Path
    origin: RolloutOrigin
    updates: tuple[int, ...]

    @staticmethod
    def of(folder: Path) -> "StoredRollouts":
        """What lies in a folder. Raises DataError for one that dump_rollouts has not written, or not whole."""
        origin = read_origin(folder, SETTING)
        if origin is None:
            raise DataError(
                f"{SETTING}: {folder} has no {NAME}: it is no folder that dump_rollouts has written. Give one"
            )
        by_rank = [updates_of(folder, rank) for rank in range(origin.processes)]
        found = sorted(set[int]().union(*by_rank))
        if not found:
            raise DataError(f"{SETTING}: {folder} has no rollouts")
        for rank, there in enumerate(by_rank):
            if lacking := [update for update in found if update not in there]:
                raise DataError(
                    f"{SETTING}: {folder} has rollouts of update {lacking[0]}, and those of process {rank} are not "
                    "among them. Copy the whole folder, or remove that update's files"
                )
        return StoredRollouts(folder, origin, tuple(found))

    def share(self, update: int, backend: Backend) -> tuple[Rollout, Scores]:
        """This process's rows of an update, of all its rounds, in their order and dealt as evenly as they come; without
        parts of scores."""
        device, rollouts, scores = backend.device, [], []
        rounds = len([*self.folder.glob(f"update-{update:06}*.rank-0.safetensors")])
        for round_, rank in product(range(rounds), range(self.origin.processes)):
            written = RolloutFolder(self.folder, rank, self.origin, setting=SETTING)
            rollouts.append(written.rollout(update, round_, device))
            if rollouts[-1].episodes is not None:
                raise DataError(
                    f"{SETTING}: {self.folder} has episodes of several rows, which are not dealt to processes. Give "
                    "rollouts with one row for each response"
                )
            scores.append(written.scores(update, round_, device))
        tensors: dict[str, Tensor] = {name: torch.cat([vars(each)[name] for each in rollouts]) for name in ROLLOUT}
        whole = Rollout(**tensors, top=None, model_inputs=None)
        rows = torch.arange(len(whole), device=device).tensor_split(backend.world_size)[backend.rank]
        dense = _dense(rollouts, scores)
        actions = take_rows(whole.action_counts, rows)
        total = torch.cat([each.total for each in scores])
        return whole.select(rows), Scores(total[rows], dense=None if dense is None else dense[actions])

    def longest_row(self) -> int:
        """Tokens of the longest row. Raises DataError for a file that cannot be read."""
        longest = 0
        for path in sorted(self.folder.glob("update-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    longest = max(longest, int(file.get_tensor("row_lengths").max()))
            except (OSError, SafetensorError) as error:
                raise DataError(f"{SETTING}: {path} cannot be read: {error}. Remove that update's files") from error
        return longest


def check_pretraining(folder: Path, now: RolloutOrigin, *, positions: int | None, minibatches: int) -> None:
    """Raise ConfigError or DataError where a run's critic cannot train on the folder's rollouts.

    `now` is what the run itself samples with; `positions` the most tokens that its models read, None for no limit.
    """
    stored = StoredRollouts.of(folder)
    origin = stored.origin
    where = f"{SETTING}: the rollouts in {folder}"
    if origin.tokenizer is None:
        raise ConfigError(
            f"{where} do not say whose tokens they are, for an older version wrote them: sample them anew"
        )
    if origin.tokenizer != now.tokenizer:
        raise ConfigError(f"{where} were written with another tokenizer: their ids mean other tokens to this critic")
    lengths = origin.settings["response_length"], now.settings["response_length"]
    if lengths[0] != lengths[1]:
        raise ConfigError(
            f"{where} have response_length = {lengths[0]}, and this run has {lengths[1]}: a response that was cut off "
            "there would not be one here. Give this run the same"
        )
    if origin.batch < max(minibatches, now.processes):
        raise ConfigError(
            f"{where} have {origin.batch} rows in an update, too few for {minibatches} minibatches and {now.processes} "
            "processes: lower num_mini_batches"
        )
    longest = stored.longest_row()
    if positions is not None and longest > positions:
        raise ConfigError(
            f"{where} have a row of {longest} tokens, and the models of this run read {positions} at most"
        )


def _dense(rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Tensor | None:
    """Rewards of single actions of all processes; 0 where a process had none, None where no one had."""
    if all(each.dense is None for each in scores):
        return None
    pairs = zip(rollouts, scores, strict=True)
    return torch.cat([torch.zeros_like(r.logprobs) if s.dense is None else s.dense for r, s in pairs])
