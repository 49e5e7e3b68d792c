"""What the generation process does: answers prompts with the newest weights that it has, until its line closes."""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import torch
from torch import nn

from nearstep.common.errors import NearstepError
from nearstep.common.messages import Prompts
from nearstep.common.telling import quiet_libraries
from nearstep.common.trust import Trust
from nearstep.common.waiting import WATCHDOG
from nearstep.models.distribution import Sampling
from nearstep.models.dtypes import DTYPES
from nearstep.models.load import load_policy
from nearstep.models.roles import Policy, make_policy
from nearstep.rollout.ahead.chunks import ChunkedGeneration
from nearstep.rollout.ahead.messages import (
    Abandon,
    Closed,
    Loaded,
    MessageLine,
    NewRows,
    NewWeights,
    ProcessFailed,
    ProcessMessage,
    Ready,
    RowsBegun,
    Setup,
    Worked,
)
from nearstep.rollout.ahead.shared_weights import SharedWeights
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.rollout.engine_settings import EngineSettings, VLLMServerSettings, VLLMSettings
from nearstep.scale.launcher import end_with


def main(line_descriptor: int, memory_descriptor: int, trainer: int) -> None:
    """Serve the trainer at the other end of the line."""
    end_with(trainer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer hears it, and ends this process when it is done
    line = MessageLine(socket.socket(fileno=line_descriptor))
    try:
        setup = line.coming.get()
        if isinstance(setup, Setup):
            with quiet_libraries():
                _serve(line, setup, memory_descriptor)
    except (NearstepError, OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        said = str(error) if isinstance(error, NearstepError) else "".join(traceback.format_exception(error))
        _tell(line, ProcessFailed(said))
        raise SystemExit(1) from error
    finally:
        line.close()


def _serve(line: MessageLine, setup: Setup, memory_descriptor: int) -> None:
    torch.set_num_threads(setup.threads)
    WATCHDOG.begin_run(setup.wait_seconds)
    policy = load_copy(setup)
    settings = engine_settings(setup.engine_settings)
    engine = make_engine(setup.engine, settings)
    generation = generation_settings(setup.generation)
    weights = SharedWeights.of(memory_descriptor, setup.weights)
    chunks = ChunkedGeneration(engine, generation, setup.chunk_length, settings.max_rows)
    server = GenerationLoop(line, policy, engine, weights, chunks)
    line.send(Ready())
    try:
        server.run()
    except BrokenPipeError:
        return  # the trainer is done with us
    finally:
        engine.close()


def load_copy(setup: Setup) -> Policy:
    """The policy from the folder that the trainer has written. Raises ModelError where that cannot be read."""
    code = setup.trusted_code
    trust = Trust(None if code is None else tuple(code))
    model: nn.Module = load_policy(setup.folder, role="model", dtype=DTYPES[setup.dtype], trust=trust)
    placed = model.requires_grad_(False).to(torch.device(setup.device))
    return make_policy(placed, autocast=setup.autocast, vocabulary=setup.vocabulary)


def generation_settings(plain: dict[str, Any]) -> GenerationSettings:
    """Settings from what `asdict` and JSON made of them."""
    sampling, stop_ids = Sampling(**plain["sampling"]), tuple(plain["stop_ids"])
    return GenerationSettings(**{**plain, "sampling": sampling, "stop_ids": stop_ids})


def engine_settings(plain: dict[str, Any]) -> EngineSettings:
    """The same for what the engine is built from."""
    vllm, server = VLLMSettings(**plain["vllm"]), VLLMServerSettings(**plain["server"])
    return EngineSettings(**{**plain, "vllm": vllm, "server": server})


@dataclass
class GenerationLoop:
    """Generates chunk by chunk, and looks for messages in between."""

    line: MessageLine
    policy: Policy
    engine: RolloutEngine
    weights: SharedWeights
    chunks: ChunkedGeneration
    version: int | None = None  # of the weights that are loaded; None before the first
    _worked: float = field(default=0.0, init=False)
    _idle: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Until the line closes."""
        while True:
            began = time.perf_counter()
            messages = list(self._messages())
            self._idle += time.perf_counter() - began
            if any(isinstance(message, Closed) for message in messages):
                return
            self._take(messages)
            if self.version is None or not self.chunks.rows:
                continue
            began = time.perf_counter()
            if beginning := self.chunks.beginning():
                self.line.send(RowsBegun(beginning, self.version))
            for row in self.chunks.step(self.version):
                self.line.send(row)
            self._worked += time.perf_counter() - began
            self.line.send(Worked(self._worked, self._idle))
            self._worked = self._idle = 0.0

    def _messages(self) -> Iterator[ProcessMessage]:
        """What has come; waits for something where there is nothing to generate."""
        if self.version is None or not self.chunks.rows:
            yield self.line.coming.get()
        try:
            while True:
                yield self.line.coming.get_nowait()
        except Empty:
            return

    def _take(self, messages: list[ProcessMessage]) -> None:
        """Weights first: rows that come with them get no token of older ones."""
        newest = max((message.version for message in messages if isinstance(message, NewWeights)), default=None)
        if newest is not None:
            self.weights.read_into(self.policy.model)
            self.line.send(Loaded(newest))
            self.engine.load(self.policy, newest)
            self.version = newest
        for message in messages:
            if isinstance(message, NewRows):
                self.chunks.add(Prompts(message.ids, message.inputs, message.columns, message.episodes))
            elif isinstance(message, Abandon):
                self.chunks.abandon(message.episodes)


def _tell(line: MessageLine, message: ProcessMessage) -> None:
    try:
        line.send(message)
    except OSError:
        return  # nobody listens


def start_command() -> str:
    """The Python text that starts this process, with the trainer's path of modules."""
    return (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "from nearstep.rollout.ahead.process import main; main(*map(int, sys.argv[2:]))"
    )


def start_arguments(path: list[str], line: int, memory: int) -> list[str]:
    """What that text is given."""
    return [json.dumps(path), str(line), str(memory), str(os.getpid())]
