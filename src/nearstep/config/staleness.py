"""Which settings let generation run ahead of the update, and which are refused beside them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Problem, Settings, option, without_effect


@dataclass(frozen=True, kw_only=True)
class StalenessSettings(Settings):
    """Whether generation waits for the update."""

    max_staleness: int = option(
        0,
        "updates by which the weights that sampled a response may be behind those that train on it. 0: generation and "
        "update take turns; above 0 a process of its own generates beside the update",
        at_least=0,
    )
    staleness_window: float = option(
        0.3,
        "max_staleness: share of the prompts under way among which finished ones may overtake the oldest that is not",
        above=0,
        at_most=1,
    )
    on_stale: Literal["wait", "drop"] = option(
        "wait",
        "max_staleness: what happens to a response that would become too old: the update waits for it, or it is left "
        "out and counted",
    )
    staleness_chunk: int = option(
        64,
        "max_staleness: tokens of a response between two looks for new weights and new prompts; at each its keys and "
        "values are computed anew",
        at_least=1,
    )


OF_STALENESS = ("staleness_window", "on_stale", "staleness_chunk")


def staleness_problems(
    config: StalenessSettings, *, sampler: str, gate_fill: str, replay_rollouts: str | None
) -> Iterator[Problem]:
    """Combinations that are refused."""
    if config.max_staleness == 0:
        return
    if gate_fill == "refill":
        yield Problem(
            "gate_fill = refill samples anew within the update, and with max_staleness its rows were sampled before: "
            "use gate_fill = replace or none, or max_staleness = 0",
            ("gate_fill", "max_staleness"),
        )
    if sampler == "difficulty":
        yield Problem(
            "sampler = difficulty draws by the scores of the update before, and with max_staleness prompts are drawn "
            "ahead of those: use sampler = shuffled or in_order, or max_staleness = 0",
            ("sampler", "max_staleness"),
        )
    if replay_rollouts is not None:
        yield Problem(
            "replay_rollouts generates nothing, so that nothing can run ahead: leave max_staleness out",
            ("replay_rollouts", "max_staleness"),
        )


def staleness_remarks(config: StalenessSettings) -> Iterator[str]:
    """Settings without effect."""
    yield from without_effect(config, ("with max_staleness = 0", config.max_staleness == 0, OF_STALENESS))
