"""Which settings choose the data of an update: which prompts are drawn, and which finished groups train."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nearstep.config.axes import is_own, listed, name_problems
from nearstep.config.settings import Problem, Settings, option, without_effect

SAMPLERS = ("auto", "in_order", "shuffled", "difficulty")
GATES = ("none", "score_range", "mean_score", "value_gap")
GateFill: TypeAlias = Literal["none", "refill", "replace"]
POOL_WEIGHTS = ("pool_borders", "pool_weights")


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(Settings):
    """Which prompts are drawn, and which of their answers train."""

    sampler: str = option(
        "auto",
        f"which prompts are drawn: {listed(SAMPLERS)}. auto is in_order or shuffled, as shuffle_dataset says; "
        "difficulty draws by the mean score last seen of each prompt",
        is_place=True,
    )
    pool_borders: tuple[float, ...] = option(
        (0.2, 0.8), "difficulty: mean scores that part one pool of prompts from the next, rising"
    )
    pool_weights: tuple[float, ...] = option(
        (1.0, 4.0, 1.0, 4.0),
        "difficulty: share of each pool in what is drawn, from low mean scores to high; last that of prompts not seen "
        "yet",
        at_least=0,
    )
    gate: str = option(
        "none",
        f"which finished groups of responses train: {listed(GATES)}. By the range of their scores, by their mean "
        "score, or by the mean |R − V(prompt)|, which needs a critic",
        is_place=True,
    )
    gate_low: float | None = option(
        None, "score_range, mean_score, value_gap: dropped unless above this; 0 for ranges and gaps if not given"
    )
    gate_high: float | None = option(None, "score_range: dropped if above this; mean_score: dropped unless below this")
    gate_share: float = option(
        1.0, "value_gap: share of the prompts that train, those with the largest gap", above=0, at_most=1
    )
    gate_fill: Literal["none", "refill", "replace"] = option(
        "none",
        "what takes the place of dropped groups. none: nothing, the update trains on fewer; refill: new prompts, "
        "sampled in the same update; replace: copies of the groups that were kept",
    )
    refill_rounds: int = option(10, "refill: most further rounds of sampling in an update", at_least=1)


def selection_problems(config: SelectionSettings, *, streaming: bool, num_generations: int) -> Iterator[Problem]:
    """Combinations that are refused."""
    yield from name_problems("sampler", config.sampler, SAMPLERS)
    yield from name_problems("gate", config.gate, GATES)
    if streaming and config.sampler != "auto":
        yield Problem(
            f"sampler = {config.sampler} chooses prompts by their number, and a stream has none: its rows come as they "
            "are read. Leave sampler out (shuffle_dataset and shuffle_buffer shuffle a stream), or streaming",
            ("sampler", "streaming"),
        )
    if config.sampler == "difficulty":
        yield from _pool_problems(config.pool_borders, config.pool_weights)
    low, high = config.gate_low, config.gate_high
    if config.gate == "score_range" and num_generations < 2:
        yield Problem(
            "gate = score_range compares responses to one prompt: num_generations must be at least 2",
            ("gate", "num_generations"),
        )
    if config.gate == "mean_score" and low is None and high is None:
        yield Problem("gate = mean_score needs gate_low or gate_high, or both", ("gate", "gate_low", "gate_high"))
    least = 0.0 if low is None and config.gate == "score_range" else low
    if config.gate in ("score_range", "mean_score") and high is not None and least is not None and high <= least:
        yield Problem(
            f"gate_high = {high:g} is not above gate_low = {least:g}: every group would be dropped",
            ("gate", "gate_low", "gate_high"),
        )
    if config.gate == "value_gap" and low is None and config.gate_share == 1:
        yield Problem("gate = value_gap needs gate_low or gate_share, or both", ("gate", "gate_low", "gate_share"))
    if config.gate == "value_gap" and config.gate_share < 1 and config.gate_fill == "refill":
        yield Problem(
            "gate_share drops a share of every round, so that gate_fill = refill would never be done: use gate_low, or "
            "gate_fill = replace",
            ("gate_share", "gate_fill"),
        )


def _pool_problems(borders: tuple[float, ...], weights: tuple[float, ...]) -> Iterator[Problem]:
    if list(borders) != sorted(set(borders)):
        yield Problem(f"pool_borders = {listed_numbers(borders)}: each must be above the one before", ("pool_borders",))
    if len(weights) != len(borders) + 2:
        yield Problem(
            f"pool_weights has {len(weights)} entries: {len(borders)} pool_borders make {len(borders) + 1} pools, and "
            f"the last weight is that of prompts not seen yet; give {len(borders) + 2}",
            POOL_WEIGHTS,
        )
    elif not any(weights):
        yield Problem("pool_weights are all 0: give one pool a weight", ("pool_weights",))


def listed_numbers(numbers: tuple[float, ...]) -> str:
    """Numbers in a message."""
    return ", ".join(f"{number:g}" for number in numbers)


def selection_remarks(config: SelectionSettings, *, shuffle_dataset: bool) -> Iterator[str]:
    """Settings without effect. A gate of the user's has limits of its own."""
    gate, chosen = config.gate, f"with gate = {config.gate}"
    yield from without_effect(
        config,
        (f"with sampler = {config.sampler}", config.sampler != "difficulty", POOL_WEIGHTS),
        (chosen, gate == "none" or is_own(gate), ("gate_low", "gate_high", "gate_share")),
        (chosen, gate == "value_gap", ("gate_high",)),
        (chosen, gate in ("score_range", "mean_score"), ("gate_share",)),
        (f"with gate_fill = {config.gate_fill}", config.gate_fill != "refill", ("refill_rounds",)),
    )
    if config.sampler != "auto" and not shuffle_dataset:
        yield f"shuffle_dataset has no effect with sampler = {config.sampler}"
