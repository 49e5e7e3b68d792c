"""The plan of a run: its networks on its machine, as the settings have it and in the layouts that are proposed."""

from dataclasses import dataclass, replace
from pathlib import Path

from nearstep.config.planning import PlanConfig
from nearstep.config.ppo_rules import critic_schedule_name
from nearstep.planning.machines import Machine, named_machine, read_machine
from nearstep.planning.measure import this_machine
from nearstep.planning.memory import PlannedRun
from nearstep.planning.networks import planned_networks
from nearstep.planning.proposals import PlannedLayout, Remedy, proposals, remedies
from nearstep.planning.quantities import PlannedMesh, PlannedRows
from nearstep.scale.degrees import Degrees
from nearstep.training.batches import batch_sizes

PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """What was worked out."""

    machine: Machine
    batch: int  # episodes of an update
    asked: PlannedLayout  # as the settings have it
    proposed: list[PlannedLayout]  # the best first; empty where the settings cannot lie otherwise
    remedies: list[Remedy]  # where nothing fits
    notes: list[str]


def make_plan(config: PlanConfig) -> Plan:
    """Work out the plan of a run. Raises ConfigError and ModelError for settings that make none."""
    machine, devices = _machine(config)
    networks, notes = planned_networks(config, is_gpu=machine.is_gpu)
    batch = batch_sizes(config, 1, devices).batch  # whatever the data set has
    run = PlannedRun(
        networks=tuple(networks),
        rows=_rows(config, -(-batch // devices)),
        mesh=_mesh(Degrees.of(config, devices)),
        recomputed=config.gradient_checkpointing,
        adam=config.optim != "sgd",
        fused=config.optim == "adamw_torch_fused",
        masters=config.master_weights,
        is_gpu=machine.is_gpu,
        cuts=config.top_p < 1 or config.top_k > 0,
        own_engine=config.engine == "transformers",
    )
    if not run.own_engine:
        notes.append(f"engine = {config.engine}: its memory, its time and copies of the policy in it are not planned.")
    asked = PlannedLayout.of(run, machine)
    proposed = proposals(run, machine)
    lacking = [] if any(each.fits for each in proposed) else remedies(proposed[0])
    return Plan(machine, batch, asked, proposed, lacking, notes)


def _mesh(degrees: Degrees) -> PlannedMesh:
    """The layout that the settings ask for."""
    return PlannedMesh(degrees.replicate, degrees.shard, tensor=degrees.tensor, expert=degrees.experts)


def _machine(config: PlanConfig) -> tuple[Machine, int]:
    """On what it runs, and how many devices there are."""
    if config.gpu is not None:
        devices = config.gpus or 1
        return named_machine(config.gpu, min(devices, config.gpus_per_node)), devices
    machine = this_machine(use_cpu=config.use_cpu) if config.machine is None else read_machine(Path(config.machine))
    if machine.is_gpu:
        return machine, config.gpus or machine.devices
    processes = config.gpus or 1  # which share the memory of their machine
    return replace(machine, memory_bytes=machine.memory_bytes // min(processes, machine.devices)), processes


def _rows(config: PlanConfig, rows: int) -> PlannedRows:
    """The rows of a process."""
    prompt = config.prompt_tokens or config.max_prompt_length or PROMPT_TOKENS
    response = config.response_length
    if config.max_length is not None:
        prompt = min(prompt, config.max_length - 1)
        response = min(response, config.max_length - prompt)
    decoupled = critic_schedule_name(config) == "decoupled"
    return PlannedRows(
        rows=rows,
        prompt=prompt,
        response=response,
        micro_rows=config.per_device_train_batch_size,
        micro_tokens=config.max_tokens_per_microbatch,
        forward_rows=config.local_rollout_forward_batch_size,
        generations=config.num_generations,
        epochs=config.num_ppo_epochs,
        minibatches=config.num_mini_batches,
        critic_epochs=config.num_vf_epochs if decoupled else None,
    )
