"""What samples ahead of the update, with max_staleness, and what such a run cannot have."""

from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.assembly.checked_inputs import CheckedInputs
from nearstep.assembly.engine import engine_settings
from nearstep.assembly.inputs import RunInputs
from nearstep.common.errors import ConfigError
from nearstep.config.axes import is_own
from nearstep.config.ppo import PPOConfig
from nearstep.data.samplers import SeesScores
from nearstep.models.roles import Policy, inner_model
from nearstep.models.saving import write_into
from nearstep.rollout.ahead.link import GenerationLink, GenerationPlan
from nearstep.rollout.ahead.window import StalenessRule
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.training.ahead import PromptDraws, RolloutStream
from nearstep.training.clock import Clock
from nearstep.training.selection import Selection

INSTEAD = "or set max_staleness = 0, with which generation and update take turns"


def check_ahead(config: PPOConfig, inputs: RunInputs, checked: CheckedInputs, selection: Selection) -> None:
    """Raise ConfigError where a run with max_staleness has what a process beside the trainer's cannot."""
    if config.max_staleness == 0:
        return
    processes = checked.backend.world_size
    if processes > 1:
        raise ConfigError(
            f"max_staleness = {config.max_staleness} with {processes} processes: each would need a generation process "
            "of its own, and all of them one choice of which prompts are finished. That is not built: run one process, "
            f"{INSTEAD}"
        )
    given = inputs.engine
    if given is not None:
        raise ConfigError(
            f"max_staleness = {config.max_staleness}: the generation process makes an engine of its own, which it "
            f"cannot of an object of this process (a {type(given).__name__}). Name it, as file.py:Name, {INSTEAD}"
        )
    if config.engine == "vllm_server":
        raise ConfigError(
            f"max_staleness = {config.max_staleness} with engine = vllm_server: generation and evaluation would load "
            f"different weights into one server. Use engine = vllm or transformers, {INSTEAD}"
        )
    if isinstance(selection.sampler, SeesScores):
        raise ConfigError(
            f"max_staleness = {config.max_staleness}: sampler {type(selection.sampler).__name__} learns from the "
            "scores of its last draw, and prompts are drawn ahead of those. Use sampler = shuffled or in_order, "
            f"{INSTEAD}"
        )


def ahead_of(
    config: PPOConfig,
    inputs: RunInputs,
    checked: CheckedInputs,
    policy: Policy,
    engine: RolloutEngine,
    generation: GenerationSettings,
    draws: PromptDraws,
    clock: Clock,
    notes: list[str],
) -> RolloutStream | None:
    """What samples ahead; None with max_staleness = 0. Raises ConfigError for a policy that no other process can
    load."""
    if config.max_staleness == 0:
        return None
    if not isinstance(inner_model(policy.model), PreTrainedModel):
        raise ConfigError(
            f"max_staleness = {config.max_staleness}: the policy is a {type(policy.model).__name__}, which the "
            f"generation process cannot load, for it is no transformers model. Use one, {INSTEAD}"
        )
    can = engine.capabilities()
    if not (can.goes_on and can.limits):
        notes.append(
            f"max_staleness: engine {config.engine} cannot go on with a row (capabilities: goes_on, limits), so that "
            "it takes up new weights between whole responses only."
        )
    plan = GenerationPlan(
        engine=config.engine,
        engine_settings=engine_settings(config, checked.backend),
        generation=generation,
        chunk_length=config.staleness_chunk,
        trust=config.trust,
        folder=Path(config.output_dir),
        write=partial(_write, checked.tokenizer),
        sends_columns=is_own(config.engine),
    )
    batch = checked.batch
    rule = StalenessRule(config.max_staleness, batch.prompts, config.staleness_window, drops=config.on_stale == "drop")
    return RolloutStream(
        draws, GenerationLink(policy, plan), rule, config.num_generations, clock, checked.backend.device
    )


def _write(tokenizer: PreTrainedTokenizerBase, model: nn.Module, folder: Path) -> None:
    write_into(folder, model, None, tokenizer, "")
