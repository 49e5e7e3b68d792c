"""How rollouts are written down with all that training needs of them, and trained from again without generating."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError, TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import Mean, Metrics
from nearstep.models.roles import Policy
from nearstep.rewards.protocol import EarlyRows, RewardModule
from nearstep.rollout.engine import Capabilities, GenerationSettings, NumberedEngine, RolloutEngine, RowEnded
from nearstep.scale.backend import Backend
from nearstep.training.rollout_origin import NAME, RolloutOrigin
from nearstep.types import Prompts, Rollout, Scores, TopLogprobs

ROLLOUT = ("tokens", "is_action", "row_lengths", "logprobs", "finished", "policy_version")
OPTIONAL = ("action_versions", "episodes")  # of the rollout: what few engines have
INPUT = "model_inputs."  # NAME.ROW
WORDS = ("extras", "failures", "weights")  # of the scores: what is no tensor


def through_files(
    config: PPOConfig,
    engine: RolloutEngine,
    rewards: RewardModule,
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    origin: RolloutOrigin,
) -> tuple[RolloutEngine, RewardModule]:
    """Engine and rewards of training: from files with replay_rollouts, writing files with dump_rollouts."""
    if config.replay_rollouts is not None:
        written = RolloutFolder(Path(config.replay_rollouts), backend.rank, origin)
        engine = replayed = ReplayedEngine(engine, written, backend.device, config.seed)
        rewards = ReplayedRewards(replayed, tokenizer)
    if config.dump_rollouts is not None and backend.leads:
        engine = numbered = NumberedEngine(engine)
        rewards = DumpedRewards(rewards, numbered, RolloutFolder(Path(config.dump_rollouts), backend.rank, origin))
    return engine, rewards


@dataclass(frozen=True)
class RolloutFolder:
    """A folder with two files for each rollout of an update and process: tensors, and what rewards said in words."""

    folder: Path
    rank: int
    origin: RolloutOrigin
    setting: str = "replay_rollouts"  # what asks to read it

    def write(self, update: int, round_: int, rollout: Rollout, scores: Scores) -> None:
        """Write a rollout of an update and its scores; a file of that name is replaced."""
        tensors: dict[str, Tensor] = {name: vars(rollout)[name] for name in ROLLOUT}
        tensors |= {name: found for name in OPTIONAL if (found := vars(rollout)[name]) is not None}
        tensors |= _input_tensors(rollout)
        if rollout.top is not None:
            tensors |= {"top.ids": rollout.top.ids, "top.logprobs": rollout.top.logprobs}
        tensors |= {"scores.total": scores.total} | {f"scores.part.{name}": part for name, part in scores.parts.items()}
        if scores.dense is not None:
            tensors["scores.dense"] = scores.dense
        if self.rank == 0 and not (self.folder / NAME).exists():
            self.origin.write(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(self._path(update, round_), tensors, scores)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"dump_rollouts: {self.folder} cannot be written: {error}. Make room, or leave it out"
            ) from error

    def _save(self, path: Path, tensors: Mapping[str, Tensor], scores: Scores) -> None:
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path.with_name(f"{path.name}.safetensors"))
        words = {name: vars(scores)[name] for name in WORDS} | {"metrics": scores.metrics.numbers()}
        text = json.dumps(words, default=str) + "\n"
        path.with_name(f"{path.name}.json").write_text(text, encoding="utf-8")

    def rollout(self, update: int, round_: int, device: torch.device) -> Rollout:
        """A rollout of an update. Raises DataError where there is none."""
        tensors = self._tensors(self._path(update, round_), device)
        top = TopLogprobs(tensors["top.ids"], tensors["top.logprobs"]) if "top.ids" in tensors else None
        known = {name: tensors[name] for name in (*ROLLOUT, *OPTIONAL) if name in tensors}
        return Rollout(**known, top=top, model_inputs=_inputs_of(tensors, len(tensors["row_lengths"])))

    def scores(self, update: int, round_: int, device: torch.device) -> Scores:
        """The scores of an update's rollout. Raises DataError where there are none."""
        path = self._path(update, round_)
        tensors, words = self._tensors(path, device), self._words(path)
        words["failures"] = {
            name: {int(row): why for row, why in rows.items()} for name, rows in words["failures"].items()
        }
        parts = {
            name.removeprefix("scores.part."): part for name, part in tensors.items() if name.startswith("scores.part.")
        }
        reported = {name: Mean.of(torch.tensor(number)) for name, number in words.pop("metrics").items()}
        return Scores(
            tensors["scores.total"], parts, dense=tensors.get("scores.dense"), metrics=Metrics(reported), **words
        )

    def _tensors(self, path: Path, device: torch.device) -> dict[str, Tensor]:
        path = path.with_name(f"{path.name}.safetensors")
        try:
            return load_file(path, device=str(device))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.setting}: {path} cannot be read: {error}. It takes the rollouts of every update and process, "
                "as dump_rollouts writes them"
            ) from error

    def _words(self, path: Path) -> dict[str, Any]:
        path = path.with_name(f"{path.name}.json")
        try:
            words: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.setting}: {path} cannot be read: {error}. Write it again") from error
        return words

    def _path(self, update: int, round_: int) -> Path:
        """The files of a rollout but for their ending; only rounds after the first of an update are numbered."""
        return self.folder / f"update-{update:06}{f'.round-{round_}' if round_ else ''}.rank-{self.rank}"


@dataclass
class Rounds:
    """Tells the rounds of an update apart, of which there are several where a gate refills: by their first episodes,
    so that an update that is played again after it was broken off has the same rounds."""

    update: int = 0
    first_episodes: list[int] = field(default_factory=list)

    def number(self, update: int, prompts: Prompts) -> int:
        """Which round (from 0) of its update these prompts are."""
        if update != self.update:
            self.update, self.first_episodes = update, []
        if prompts.episodes[0] not in self.first_episodes:
            self.first_episodes.append(prompts.episodes[0])
        return self.first_episodes.index(prompts.episodes[0])


def _input_tensors(rollout: Rollout) -> dict[str, Tensor]:
    """What models read beside tokens, a tensor for each row that has one; an empty one says that the name is there."""
    found: dict[str, Tensor] = {}
    for name, values in (rollout.model_inputs or {}).items():
        found[f"{INPUT}{name}"] = torch.empty(0)
        found |= {f"{INPUT}{name}.{row}": value for row, value in enumerate(values) if value is not None}
    return found


def _first_segments(rollout: Rollout) -> Rollout:
    """The rows that begin with the prompts of the run."""
    counts = rollout.segment_counts
    return rollout.select(counts.cumsum(0) - counts)


def _inputs_of(tensors: Mapping[str, Tensor], rows: int) -> dict[str, list[Tensor | None]] | None:
    """The inverse of `_input_tensors`."""
    names = [name for name in tensors if name.startswith(INPUT) and not name.rpartition(".")[2].isdecimal()]
    return {name.removeprefix(INPUT): [tensors.get(f"{name}.{row}") for row in range(rows)] for name in names} or None


@dataclass(frozen=True)
class DumpedRewards:
    """Rewards that write down every rollout that they score."""

    rewards: RewardModule
    engine: NumberedEngine  # knows the update: what was sampled may be of older weights
    folder: RolloutFolder
    rounds: Rounds = field(default_factory=Rounds)

    def early(self, prompts: Prompts) -> EarlyRows:
        """See RewardModule.early."""
        return self.rewards.early(prompts)

    def __call__(self, prompts: Prompts, rollout: Rollout, early: EarlyRows | None = None) -> Scores:
        """Score, and write rollout and scores."""
        scores = self.rewards(prompts, rollout, early)
        update = self.engine.version
        self.folder.write(update, self.rounds.number(update, prompts), rollout, scores)
        return scores

    def close(self) -> None:
        """See RewardModule.close."""
        self.rewards.close()


@dataclass(frozen=True)
class ReplayedRewards:
    """The scores that were written down; nothing is scored."""

    engine: "ReplayedEngine"
    tokenizer: PreTrainedTokenizerBase
    rounds: Rounds = field(default_factory=Rounds)

    def early(self, prompts: Prompts) -> EarlyRows:
        """Nothing begins early."""
        return EarlyRows(prompts, self.tokenizer, lambda: None, {})

    def __call__(self, prompts: Prompts, rollout: Rollout, early: EarlyRows | None = None) -> Scores:
        """The scores of the rollout's update."""
        update = self.engine.version
        return self.engine.folder.scores(update, self.rounds.number(update, prompts), rollout.tokens.device)

    def close(self) -> None:
        """Nothing is kept."""


@dataclass
class ReplayedEngine:
    """Gives the rollouts that were written down; evaluation and samples, which have a seed of their own, go to the real
    engine."""

    engine: RolloutEngine
    folder: RolloutFolder
    device: torch.device
    seed: int  # of training
    version: int = 0
    rounds: Rounds = field(default_factory=Rounds)

    def capabilities(self) -> Capabilities:
        """Those of the real engine, but for what concerns rows as they are generated. Written rows have kept limits."""
        can = self.engine.capabilities()
        return Capabilities(top_tokens=can.top_tokens, limits=can.limits)

    def load(self, policy: Policy, version: int) -> None:
        """See RolloutEngine.load."""
        self.version = version
        self.engine.load(policy, version)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """The rollout of the update whose weights were loaded last. Its prompts are checked like any engine's."""
        if settings.seed != self.seed:
            return self.engine.generate(prompts, settings)
        rollout = self.folder.rollout(self.version, self.rounds.number(self.version, prompts), self.device)
        if _first_segments(rollout).prompt_ids() != prompts.ids:
            raise DataError(
                f"replay_rollouts: the rollouts of update {self.version} in {self.folder.folder} were sampled from "
                "other prompts than this run has there. Give the data and settings that they were sampled with"
            )
        return rollout

    def close(self) -> None:
        """See RolloutEngine.close."""
        self.engine.close()
