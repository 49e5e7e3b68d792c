"""How the trainer uses the generation process: starts it, gives it weights and prompts, and hears of rows."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from nearstep.common.messages import Prompts
from nearstep.common.telling import tell
from nearstep.common.trust import NONE, Trust
from nearstep.common.waiting import WATCHDOG, Wait, waiting
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.roles import Policy, inner_model
from nearstep.rollout.ahead.messages import (
    Abandon,
    FinishedRow,
    Loaded,
    NewRows,
    NewWeights,
    Ready,
    RowsBegun,
    Setup,
    Worked,
)
from nearstep.rollout.ahead.shared_weights import SharedWeights
from nearstep.rollout.ahead.worker import GenerationProcess
from nearstep.rollout.engine import GenerationSettings
from nearstep.rollout.engine_settings import EngineSettings

LEFT = ".generation-"  # folders of a policy that the process reads once


@dataclass(frozen=True)
class GenerationPlan:
    """What the process is made of, beside the policy's weights."""

    engine: str
    engine_settings: EngineSettings
    generation: GenerationSettings
    chunk_length: int
    trust: Trust
    folder: Path  # where the policy is written for it
    write: Callable[[nn.Module, Path], None]  # writes a model into a folder
    sends_columns: bool  # an engine of the user's may read them


@runtime_checkable
class AnswersAhead(Protocol):
    """What answers prompts while the trainer does something else."""

    sent: int | None  # version of the weights that were published last, since the start

    @property
    def runs(self) -> bool:
        """Whether it has been started."""

    @property
    def state(self) -> str:
        """What it does, in words."""

    def start(self) -> None:
        """Start with the policy as it is now."""

    def publish(self, version: int) -> bool:
        """Hand over the policy's weights as those of `version`; whether they differ from those before."""

    def has_moved(self) -> bool:
        """Whether the policy has other weights now than those that were published last."""

    def give(self, prompts: Prompts) -> None:
        """Rows to be answered with the weights that were published last, or newer ones."""

    def abandon(self, episodes: Sequence[int]) -> None:
        """Rows that are wanted no longer."""

    def hear(self, wait: Wait | None = None) -> list[RowsBegun | FinishedRow | Worked]:
        """What has become of rows; with `wait` something is awaited, and told to it."""

    def close(self) -> None:
        """Stop, and forget what has not ended."""


@dataclass
class GenerationLink:
    """The trainer's side of a generation process that runs or not."""

    policy: Policy
    plan: GenerationPlan
    _process: GenerationProcess | None = None
    _weights: SharedWeights | None = None
    sent: int | None = None  # version that was published last, since the start
    _loaded: int | None = None  # newest version that the process has copied
    _is_ready: bool = False
    _threads: int = field(default_factory=torch.get_num_threads)
    _heard: list[RowsBegun | FinishedRow | Worked] = field(default_factory=list)

    def start(self) -> None:
        """Start the process with the policy as it is now. Returns once it is up.

        Raises TrainingError or LostProcessError where it does not come up.
        """
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        for left in self.plan.folder.glob(f"{LEFT}*"):
            shutil.rmtree(left, ignore_errors=True)
        self._threads = torch.get_num_threads()
        own, given = split_threads(self._threads)
        tell("starting the generation process (max_staleness) …")
        whole = self._whole()
        self._weights = SharedWeights.for_model(whole)
        with tempfile.TemporaryDirectory(dir=self.plan.folder, prefix=LEFT) as folder:
            self.plan.write(whole, Path(folder))
            setup = self._setup(Path(folder), given)
            self.sent = self._loaded = None
            self._is_ready = False
            self._process = GenerationProcess.started(setup, self._weights)
            with waiting("the generation process (it starts)", lambda: self.state) as wait:
                while not self._is_ready:
                    self._receive(wait)
        if self.policy.device.type == "cpu":
            torch.set_num_threads(own)
        WATCHDOG.guard = self._problem

    def publish(self, version: int) -> bool:
        """Hand over the policy's weights as those of `version`; whether they differ from those before.

        The first ones after a start count as others. Waits until the former ones are copied.
        """
        assert self._weights is not None, "start() comes before publish()"
        with waiting("the generation process (it copies weights)", lambda: self.state) as wait:
            while self._loaded != self.sent:
                self._receive(wait)
        whole = self._whole()
        differs = self.sent is None or not self._weights.holds(whole)
        if differs:
            self._weights.write(whole)
        self.sent = version
        self._running.send(NewWeights(version))
        return differs

    def has_moved(self) -> bool:
        """Whether the policy has other weights now than those that were published last."""
        return self._weights is None or self.sent is None or not self._weights.holds(self._whole())

    def give(self, prompts: Prompts) -> None:
        """Rows to be answered with the weights that were published last, or newer ones."""
        columns = prompts.columns if self.plan.sends_columns else {}
        self._running.send(NewRows(prompts.episodes, prompts.ids, list(prompts.inputs), columns))

    def abandon(self, episodes: Sequence[int]) -> None:
        """Rows that are wanted no longer."""
        self._running.send(Abandon(list(episodes)))

    def hear(self, wait: Wait | None = None) -> list[RowsBegun | FinishedRow | Worked]:
        """What has become of rows; with `wait` at least one message is awaited."""
        self._receive(None if self._heard else wait)
        found, self._heard = self._heard, []
        return found

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def state(self) -> str:
        """What the process does, in words."""
        return "it does not run" if self._process is None else self._process.state

    def close(self) -> None:
        """End the process, and give back its memory and threads."""
        if self._process is None:
            return
        if WATCHDOG.guard == self._problem:
            WATCHDOG.guard = None
        self._process.end()
        self._process = None
        if self._weights is not None:
            self._weights.close()
            self._weights = None
        torch.set_num_threads(self._threads)

    @property
    def _running(self) -> GenerationProcess:
        assert self._process is not None, "start() comes first"
        return self._process

    def _receive(self, wait: Wait | None) -> None:
        for message in self._running.messages(wait):
            if isinstance(message, Ready):
                self._is_ready = True
            elif isinstance(message, Loaded):
                self._loaded = message.version
            elif isinstance(message, RowsBegun | FinishedRow | Worked):
                self._heard.append(message)

    def _problem(self) -> str | None:
        return None if self._process is None else self._process.problem

    def _whole(self) -> nn.Module:
        """The policy as one model, adapters merged."""
        model = self.policy.model
        return with_adapters_merged(model) if is_adapted(model) else inner_model(model)

    def _setup(self, folder: Path, threads: int) -> Setup:
        plan, code = self.plan, self.plan.trust.code or ()
        assert self._weights is not None
        return Setup(
            folder=os.fspath(folder.resolve()),
            weights=self._weights.layout,
            dtype=str(self.policy.dtype).removeprefix("torch."),
            autocast=self.policy.autocast,
            device=str(self.policy.device),
            vocabulary=self.policy.vocabulary,
            # The folder holds the very code that the trainer's own model runs, if it runs any.
            trusted_code=[NONE] if NONE in code else [os.fspath(folder.resolve())],
            engine=plan.engine,
            engine_settings=asdict(plan.engine_settings),
            generation=asdict(plan.generation),
            chunk_length=plan.chunk_length,
            threads=threads,
            wait_seconds=WATCHDOG.limit_seconds,
        )


def split_threads(threads: int) -> tuple[int, int]:
    """How many of the threads of a machine the trainer keeps, and how many the generation process gets."""
    given = max(1, threads // 2)
    return max(1, threads - given), given
