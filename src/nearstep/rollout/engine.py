"""What an engine must do to generate episodes, and what it may leave out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.common.errors import ConfigError
from nearstep.common.waiting import listed, waiting
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Policy
from nearstep.rollout.checks import check_rollout
from nearstep.rollout.engine_settings import EngineSettings as EngineSettings
from nearstep.types import Prompts, Rollout

RowEnded: TypeAlias = Callable[[int, list[int], bool], None]  # row, ids of its response, whether it is finished
MANY_ACTIONS = 16  # of which all are hardly ever certain


@dataclass(frozen=True)
class GenerationSettings:
    """How the responses of one call are sampled. Nothing is taken from a model's own generation settings."""

    sampling: Sampling
    response_length: int
    stop_ids: tuple[int, ...]
    seed: int
    greedy: bool = False  # take the most probable token, for evaluation
    top_tokens: int = 0  # how many of the most probable tokens are recorded at every action; needs a capability
    limits: tuple[int, ...] | None = None  # most tokens of each row, not response_length; needs a capability
    max_length: int | None = None  # most tokens of prompt and response; `play` makes limits of it
    vocabulary: int | None = None  # ids from this on are no tokens: they have no probability, whatever their logits
    begun: tuple[int, ...] | None = None  # last tokens of each prompt that are its response so far; needs a capability


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond sampling. A run that needs something else is refused before it begins."""

    top_tokens: bool = False  # record the most probable tokens, which some trust regions compare
    limits: bool = False  # keep a limit for each row
    row_ended: bool = False  # call `row_ended` as soon as a row has ended, so that its reward may begin
    own_episode: bool = False  # a response depends on seed, prompt and episode number, not on the rest of the batch
    several_rows: bool = False  # an episode may have several rows (Rollout.episodes)
    goes_on: bool = False  # go on with rows (settings.begun) as if they had never been broken off


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples responses from a policy and records what it did. Training, evaluation and samples share one engine.

    The order of calls: `load`, then `generate` any number of times, then `load` again; `close` comes last. The first
    `load` starts the engine, and `close` stops it. Between `generate` and the next `load` it has nothing to do: one
    that can give its memory back meanwhile is a SleepingEngine.
    """

    def capabilities(self) -> Capabilities:
        """What it can do; always the same."""

    def load(self, policy: Policy, version: int) -> None:
        """Take over the policy's weights as they are now; `version` is the number of the update that will use them.

        The first call starts whatever has to be started. What was computed from older weights (a prefix cache, say)
        must be gone afterwards.
        """

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """Sample one response for every row of `prompts`, in order, to its first stop token or its limit.

        A response may have several turns: what stands between them is recorded, and no action. An episode may have
        several rows, each with a prompt of its own (`Rollout.episodes`); the first begins with the one that is given.
        `settings.top_tokens`, `settings.limits`, `settings.begun` and `row_ended` are given only to engines with that
        capability. A row that goes on is answered with the tokens to come, and `limits` count these alone.
        `row_ended` is called from the thread that `generate` runs in, at most once for a row, with what the rollout
        will hold of it; the call returns at once.
        """

    def close(self) -> None:
        """Stop what `load` started and give its memory back. A later `load` starts it again."""


@runtime_checkable
class SleepingEngine(RolloutEngine, Protocol):
    """An engine that can give its memory to the update."""

    def sleep(self) -> None:
        """Give back the memory of weights and caches; the next `load` wakes it. Called again, it does nothing."""


@dataclass
class NumberedEngine:
    """Knows the number of the update whose weights were loaded last."""

    engine: RolloutEngine
    version: int = 0

    def capabilities(self) -> Capabilities:
        """See RolloutEngine.capabilities."""
        return self.engine.capabilities()

    def load(self, policy: Policy, version: int) -> None:
        """See RolloutEngine.load."""
        self.version = version
        self.engine.load(policy, version)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """See RolloutEngine.generate."""
        return self.engine.generate(prompts, settings, row_ended)

    def sleep(self) -> None:
        """See SleepingEngine.sleep."""
        rest(self.engine)

    def close(self) -> None:
        """See RolloutEngine.close."""
        self.engine.close()


def engine_name(engine: RolloutEngine) -> str:
    """What messages call an engine."""
    return engine_name(engine.engine) if isinstance(engine, NumberedEngine) else type(engine).__name__


def rollout_of_rows(
    prompts: Prompts,
    responses: Sequence[Sequence[int]],
    logprobs: Sequence[Float[Tensor, " _"]],
    finished: Sequence[bool],
    version: int,
    chosen: Sequence[Sequence[bool]] | None = None,
) -> Rollout:
    """A Rollout from what an engine has of each row: ids of the response, its log-probs, whether a stop token ended it.

    `chosen` says which ids of a response the policy chose: what a tool or a user said between its turns is no action
    and has no log-prob. Without it the policy chose all of them. It lies on the device of the log-probs.
    """
    device = logprobs[0].device
    rows = list(zip(prompts.ids, responses, strict=True))
    chosen = [[True] * len(response) for response in responses] if chosen is None else chosen
    return Rollout(
        tokens=torch.tensor([token for prompt, response in rows for token in (*prompt, *response)], device=device),
        is_action=torch.tensor(
            [each for prompt, own in zip(prompts.ids, chosen, strict=True) for each in (*[False] * len(prompt), *own)],
            device=device,
        ),
        row_lengths=torch.tensor([len(prompt) + len(response) for prompt, response in rows], device=device),
        logprobs=torch.cat(list(logprobs)),
        finished=torch.tensor(list(finished), device=device),
        policy_version=torch.full((len(rows),), version, device=device),
    )


def play(
    engine: RolloutEngine,
    prompts: Prompts,
    settings: GenerationSettings,
    row_ended: RowEnded | None = None,
    *,
    version: int | None = None,
) -> Rollout:
    """Let the engine generate, and check what it recorded; it calls `row_ended` as rows end if it can.

    `version` is the one that was loaded last, if the caller knows. Raises ConfigError where `settings` ask for what the
    engine cannot do, and TrainingError for a rollout that cannot be trained on (see rollout.checks).
    """
    can, name = engine.capabilities(), engine_name(engine)
    if settings.max_length is not None and settings.limits is None:
        settings = replace(settings, limits=row_limits(prompts.ids, settings.response_length, settings.max_length))
    require_top_tokens(engine, settings.top_tokens)
    if settings.limits is not None:
        require_limits(engine)
    if settings.begun is not None and not can.goes_on:
        raise ConfigError(f"engine {name} cannot go on with rows (capabilities().goes_on)")
    to_come = dict.fromkeys(range(len(prompts)))
    what = f"engine {name} ({len(prompts)} responses)"
    with waiting(what, lambda: f"{len(to_come)} are to come: rows {listed([*to_come])}") as wait:

        def tell(row: int, ids: list[int], finished: bool) -> None:
            to_come.pop(row, None)
            wait.alive()
            if row_ended is not None:
                row_ended(row, ids, finished)

        found: object = engine.generate(prompts, settings, tell if can.row_ended and row_ended is not None else None)
    limits = settings.limits or (settings.response_length,) * len(prompts)
    return check_rollout(
        found,
        prompts,
        engine=name,
        limits=limits,
        top_tokens=settings.top_tokens,
        newest=version,
        vocabulary=settings.vocabulary,
    )


def load(engine: RolloutEngine, policy: Policy, version: int) -> None:
    """Hand the engine the policy's weights, and do not wait for it for ever."""
    with waiting(f"engine {engine_name(engine)} (it takes over the weights of update {version})"):
        engine.load(policy, version)


def rest(engine: RolloutEngine) -> None:
    """All rollouts of an update are there: let the engine sleep until the next load, if it can."""
    if isinstance(engine, SleepingEngine):
        with waiting(f"engine {engine_name(engine)} (it gives its memory back)"):
            engine.sleep()


def require_top_tokens(engine: RolloutEngine, top_tokens: int) -> None:
    """Raise ConfigError where top tokens are needed and the engine records none."""
    if top_tokens > 0 and not engine.capabilities().top_tokens:
        raise ConfigError(
            f"the trust region compares the {top_tokens} most probable tokens, and engine {engine_name(engine)} "
            "records none (capabilities().top_tokens). Use a region that reads the sampled token alone, such as clip, "
            "binary_tv or binary_kl, or an engine that records them: transformers, vllm or vllm_server"
        )


def require_limits(engine: RolloutEngine) -> None:
    """Raise ConfigError where rows need a limit each and the engine keeps none."""
    if not engine.capabilities().limits:
        raise ConfigError(
            f"engine {engine_name(engine)} keeps no limits of single rows (capabilities().limits), which max_length "
            "needs: give response_length and max_prompt_length instead"
        )


def row_limits(prompts: Sequence[Sequence[int]], response_length: int, max_length: int | None) -> tuple[int, ...]:
    """Most response tokens behind each prompt, by its length and that of both together; one at least.

    >>> row_limits([[1, 2], [1, 2, 3, 4]], response_length=4, max_length=5)
    (3, 1)
    """
    if max_length is None:
        return (response_length,) * len(prompts)
    return tuple(max(1, min(response_length, max_length - len(ids))) for ids in prompts)


def looks_unrecorded(rollout: Rollout, settings: GenerationSettings) -> bool:
    """Whether every log-prob is 0: those of an engine that records none, or of a policy that has one token left.

    A small top_p, a low temperature or a collapsed policy do that, and their zeros are true: only the policy can tell.
    """
    certain = settings.greedy or settings.sampling.top_k == 1
    return not certain and len(rollout.logprobs) >= MANY_ACTIONS and not rollout.logprobs.any()
