"""What samples ahead of the update, with max_staleness, and what such a run cannot have."""

from dataclasses import replace
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
from nearstep.data.prompt_source import PromptSource
from nearstep.data.prompt_stream import StreamSource
from nearstep.data.samplers import SeesScores
from nearstep.models.roles import Policy, inner_model
from nearstep.models.saving import write_into
from nearstep.rollout.ahead.link import GenerationLink, GenerationPlan
from nearstep.rollout.ahead.window import StalenessRule
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.ahead import PromptDraws, RolloutStream
from nearstep.training.clock import Clock
from nearstep.training.selection import Selection
from nearstep.training.shared_ahead import SampledAhead, SharedStream

INSTEAD = "or set max_staleness = 0, with which generation and update take turns"


def check_ahead(config: PPOConfig, inputs: RunInputs, checked: CheckedInputs, selection: Selection) -> None:
    """Raise ConfigError where a run with max_staleness has what a process beside the trainer's cannot."""
    if config.max_staleness == 0:
        return
    if not isinstance(checked.backend, TorchBackend):
        raise ConfigError(
            f"max_staleness = {config.max_staleness}: the generation process copies whole weights from the first "
            "process, and with dp_shard, sp_size or DeepSpeed no process has them by itself. Run processes that each "
            f"hold a copy, {INSTEAD}"
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
    draws: PromptSource | StreamSource,
    clock: Clock,
    notes: list[str],
) -> SampledAhead | None:
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
    batch, backend = checked.batch, checked.backend
    rule = StalenessRule(config.max_staleness, batch.prompts, config.staleness_window, drops=config.on_stale == "drop")

    def stream(whole: PromptDraws) -> RolloutStream:
        return RolloutStream(whole, GenerationLink(policy, plan), rule, config.num_generations, clock, backend.device)

    if backend.world_size == 1:
        return stream(draws)
    every_row = replace(draws, plan=replace(draws.plan, rank=0, world_size=1))
    first = stream(every_row) if backend.rank == 0 else None
    return SharedStream(first, draws, draws.plan.rows, backend, clock, backend.device)


def _write(tokenizer: PreTrainedTokenizerBase, model: nn.Module, folder: Path) -> None:
    write_into(folder, model, None, tokenizer, "")
