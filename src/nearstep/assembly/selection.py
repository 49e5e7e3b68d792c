"""Which sampler draws the prompts of a run and which gate lets groups train: the user's own, or what a name means."""

import math
from collections.abc import Callable, Mapping

from nearstep.algorithm.advantage_rules import Advantage, advantage_name
from nearstep.assembly.axes import own_object
from nearstep.assembly.checked_inputs import CheckedInputs
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.selection_checks import fitting_gate, fitting_sampler
from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.data.prompt_source import PromptSource
from nearstep.data.prompt_stream import StreamSource
from nearstep.data.samplers import DifficultyPools, Passes, Sampler
from nearstep.rollout.engine import RolloutEngine
from nearstep.training.gates import Gate, MeanScore, ScoreRange, ValueGap
from nearstep.training.selection import Selection

# Every name of config.selection has its line here; a test compares the two.
SAMPLERS: Mapping[str, Callable[[PPOConfig], Sampler]] = {
    "auto": lambda c: Passes(c.shuffle_dataset),
    "in_order": lambda _: Passes(shuffle=False),
    "shuffled": lambda _: Passes(shuffle=True),
    "difficulty": lambda c: DifficultyPools(c.pool_borders, c.pool_weights),
}
GATES: Mapping[str, Callable[[PPOConfig], Gate | None]] = {
    "none": lambda _: None,
    "score_range": lambda c: ScoreRange(_either(c.gate_low, 0.0), _either(c.gate_high, math.inf)),
    "mean_score": lambda c: MeanScore(_either(c.gate_low, -math.inf), _either(c.gate_high, math.inf)),
    "value_gap": lambda c: ValueGap(_either(c.gate_low, 0.0), c.gate_share),
}


def choose_selection(
    config: PPOConfig, inputs: RunInputs, checked: CheckedInputs, advantage: Advantage
) -> tuple[Selection, PromptSource | StreamSource, list[str]]:
    """Sampler and gate, where prompts come from, and what the user should know of them. Raises ConfigError for what
    does not fit."""
    streams = bool(checked.run_prompts.streams)
    if streams and (inputs.sampler is not None or config.sampler != "auto"):
        raise ConfigError(
            "sampler: it chooses prompts by their number, and a stream has none: its rows come as they are read. Leave "
            "sampler out (shuffle_dataset and shuffle_buffer shuffle a stream), or give data that are no stream"
        )
    chosen, found = sampler(config, inputs.sampler), gate(config, inputs.gate)
    if found is not None and found.needs_values and not advantage.needs_critic:
        raise ConfigError(
            f"gate {type(found).__name__} reads the critic, and advantage {advantage_name(advantage)} has none: use an "
            "advantage with a critic (gae), or another gate"
        )
    prompts = checked.run_prompts.source(config, checked.batch.batch, chosen, checked.backend)
    notes = prompts.notes() + [
        f"{name} is an object of your own: {type(each).__name__}."
        for name, each in (("sampler", inputs.sampler), ("gate", inputs.gate))
        if each is not None
    ]
    if found is None and config.gate_fill != "none":
        notes.append(f"gate_fill = {config.gate_fill} has no effect without a gate.")
    if found is not None and config.gate_fill == "refill":
        notes.append(
            f"An update samples anew for what the gate drops, in at most {config.refill_rounds} further rounds: more "
            "episodes are generated than are counted above."
        )
    return Selection(chosen, found, config.gate_fill, config.refill_rounds, checked.data), prompts, notes


def for_engine(selection: Selection, engine: RolloutEngine) -> Selection:
    """The same. Raises ConfigError where the engine gives episodes several rows, and something looks at scores."""
    if selection.looks_at_scores and engine.capabilities().several_rows:
        gate, sampler = selection.gate, selection.sampler
        what = f"sampler {type(sampler).__name__}" if gate is None else f"gate {type(gate).__name__}"
        raise ConfigError(
            f"{what} looks at episodes of one row, and the engine {type(engine).__name__} gives some several: leave it "
            "out, or use an engine that gives each one row"
        )
    return selection


def sampler(config: PPOConfig, own: object = None) -> Sampler:
    """What draws the prompts. Raises ConfigError for an object that is no sampler."""
    if own is None and config.sampler in SAMPLERS:
        return SAMPLERS[config.sampler](config)
    return fitting_sampler(*own_object("sampler", "sampler", config, config.sampler, own))


def gate(config: PPOConfig, own: object = None) -> Gate | None:
    """What lets groups train; None where all do. Raises ConfigError for an object that is no gate."""
    if own is None and config.gate in GATES:
        return GATES[config.gate](config)
    found, what = own_object("gate", "gate", config, config.gate, own)
    return fitting_gate(found, what, config.num_generations)


def _either(given: float | None, default: float) -> float:
    return default if given is None else given
