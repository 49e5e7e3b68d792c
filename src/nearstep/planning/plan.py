"""The plan of a run: its networks on its machine, as the settings have it and in the layouts that are proposed."""

from dataclasses import dataclass, replace
from pathlib import Path

from nearstep.common.errors import ConfigError
from nearstep.config.deepspeed import ZeroChoice, zero_choice
from nearstep.config.parallel_rules import check_tensor_parallel
from nearstep.config.planning import PlanConfig
from nearstep.config.ppo_rules import critic_schedule_name
from nearstep.planning.layouts import PlannedLayout, divided_sizes, require_layout
from nearstep.planning.machines import Machine, named_machine, read_machine
from nearstep.planning.measure import this_machine
from nearstep.planning.mesh import PlannedMesh
from nearstep.planning.networks import planned_networks
from nearstep.planning.proposals import Remedy, proposals, remedies
from nearstep.planning.quantities import PlannedRows
from nearstep.planning.run import PlannedRun, ZeroBuffers
from nearstep.planning.unplanned import unplanned
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
    zero = zero_choice(config)
    mesh = _mesh(config, devices, zero)
    undivided = _undivided(config)
    sizes = divided_sizes(mesh, machine) if undivided is None and zero is None and _may_divide(config) else ()
    networks, notes = planned_networks(config, is_gpu=machine.is_gpu, together=sizes)
    batch = batch_sizes(config, 1, mesh.row_groups).batch  # whatever the data set has
    run = PlannedRun(
        networks=tuple(networks),
        rows=_rows(config, -(-batch // mesh.row_groups)),
        mesh=mesh,
        every=config.gradient_checkpointing_every if config.gradient_checkpointing else 0,
        adam=config.optim != "sgd",
        eight_bit=config.optim == "adamw_8bit",
        fused=config.optim == "adamw_torch_fused",
        masters=config.master_weights,
        is_gpu=machine.is_gpu,
        cuts=config.top_p < 1 or config.top_k > 0,
        own_engine=config.engine == "transformers",
        offloaded=config.offload_roles if machine.is_gpu else (),
        zero=ZeroBuffers() if zero is None else _buffers(zero),
        undivided=undivided,
    )
    require_layout(run)
    notes += unplanned(config)
    asked = PlannedLayout(run, machine)
    proposed = proposals(run, machine)
    lacking = [] if any(each.fits for each in proposed) else remedies(proposed[0])
    return Plan(machine, batch, asked, proposed, lacking, notes)


def _mesh(config: PlanConfig, devices: int, zero: ZeroChoice | None) -> PlannedMesh:
    """The layout that the settings ask for. Raises ConfigError where it is not one of so many devices."""
    if config.sp_size > 1 and devices % config.sp_size:
        raise ConfigError(
            f"sp_size = {config.sp_size} with {devices} devices: it must divide their number. Give another, or leave "
            "it out"
        )
    if zero is not None and devices > 1:
        return PlannedMesh(shard=devices, zero_stage=zero.stage)
    degrees = Degrees.of(config, devices)
    if degrees.tensor > 1:
        check_tensor_parallel(config)
    return PlannedMesh(degrees.replicate, degrees.shard, degrees.tensor, config.sp_size, degrees.experts)


def _buffers(zero: ZeroChoice) -> ZeroBuffers:
    """As a file of DeepSpeed sizes them, else its defaults."""
    known = {name: value for name, value in zero.entries.items() if isinstance(value, int)}
    default = ZeroBuffers()
    return ZeroBuffers(
        known.get("reduce_bucket_size", default.bucket), known.get("stage3_max_live_parameters", default.gathered)
    )


def _undivided(config: PlanConfig) -> str | None:
    """The setting with which a run is refused whose weights or moments are dealt out."""
    asked = {
        "offload_roles": bool(config.offload_roles), "load_in_4bit": config.load_in_4bit,
        "reward_trunk = adapter": config.reward_trunk == "adapter", "optim = adamw_8bit": config.optim == "adamw_8bit",
    }  # fmt: skip
    return next((name for name, is_asked in asked.items() if is_asked), None)


def _may_divide(config: PlanConfig) -> bool:
    """Whether a run with these settings could compute layers on several processes."""
    try:
        check_tensor_parallel(replace(config, sp_size=1))
    except ConfigError:
        return False
    return True


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
