"""A run in one layout on a machine, and the layouts in which so many devices may have it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from nearstep.common.errors import ConfigError
from nearstep.planning.machines import Machine
from nearstep.planning.memory import PlannedStage, peak_of, stages
from nearstep.planning.mesh import PlannedMesh
from nearstep.planning.quantities import PlannedNetwork
from nearstep.planning.run import PlannedRun
from nearstep.planning.work import PhaseTime, Transfer, times, transfers

TOGETHER = (2, 4, 8)  # processes that may compute layers, or the tokens of a row, together
LONG_ROW = 4096  # tokens from which on rows over several processes are proposed


@dataclass(frozen=True)
class PlannedLayout:
    """A run in one layout on a machine: what it needs, sends and takes, worked out as it is asked for."""

    run: PlannedRun
    machine: Machine

    @cached_property
    def stages(self) -> tuple[PlannedStage, ...]:
        """Of an update, in order."""
        return tuple(stages(self.run))

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """What a process sends."""
        return tuple(transfers(self.run))

    @cached_property
    def times(self) -> tuple[PhaseTime, ...]:
        """Of the phases."""
        return tuple(times(self.run, self.machine))

    @cached_property
    def peak(self) -> PlannedStage:
        """The stage that needs most memory."""
        return peak_of(list(self.stages))

    @property
    def free(self) -> int:
        """Bytes that are left at the peak; negative where it does not fit."""
        return self.machine.usable_bytes - self.peak.bytes

    @property
    def fits(self) -> bool:
        """Whether a process has room for it."""
        return self.free >= 0

    @property
    def seconds(self) -> float:
        """Of an update."""
        return sum(phase.seconds for phase in self.times)

    def whole_roles(self) -> tuple[str, ...]:
        """Roles that are whole on every process where others are in pieces."""
        return tuple(dict.fromkeys(each.role for each in self.run.networks if each.whole and each.role != "reward"))

    def settings(self, asked: PlannedRun | None = None) -> dict[str, object]:
        """What makes a run lie like this, beside settings that are as they would be anyway or in `asked`; none of it
        changes a number of the run."""
        mesh, rows, run = self.run.mesh, self.run.rows, self.run
        given = PlannedMesh() if asked is None else asked.mesh
        sizes = {"tp_size": (mesh.tensor, given.tensor), "sp_size": (mesh.sequence, given.sequence),
                 "ep_size": (mesh.expert, given.expert)}  # fmt: skip
        found: dict[str, object] = {name: own for name, (own, other) in sizes.items() if own > 1 or other > 1}
        if mesh.zero_stage is None:
            found |= {"dp_shard": mesh.shard, "dp_replicate": mesh.replicate}
        else:
            found |= {"zero_stage": mesh.zero_stage}
        if whole := self.whole_roles():
            found["whole_roles"] = whole
        found["gradient_checkpointing"] = run.every > 0
        if run.every > 1:
            found["gradient_checkpointing_every"] = run.every
        return found | {
            "per_device_train_batch_size": rows.micro_rows, "max_tokens_per_microbatch": rows.micro_tokens,
            "local_rollout_forward_batch_size": rows.forward_rows,
        }  # fmt: skip


def divided_sizes(mesh: PlannedMesh, machine: Machine) -> tuple[int, ...]:
    """Numbers of processes that might compute layers together: within a node, and that which is asked for."""
    found = [size for size in TOGETHER if size <= machine.devices and mesh.devices % size == 0]
    return tuple(dict.fromkeys([*found, *([mesh.tensor] if mesh.tensor > 1 else [])]))


def require_layout(run: PlannedRun) -> None:
    """Raise ConfigError where the layout that is asked for is not one of the networks of the run."""
    for network in run.networks:
        tensor, sequence = run.mesh_of(network).tensor, run.mesh.sequence
        if tensor not in network.tensor_sizes:
            able = ", ".join(map(str, network.tensor_sizes[1:])) or "none"
            raise ConfigError(
                f"tp_size = {tensor}: the layers of the {network.role} ({network.name}) cannot be divided over so many "
                f"processes; of the sizes that were tried it can over {able}. Give dp_shard in the place of tp_size, "
                "or name the role in whole_roles"
            )
        if network.trains and network.heads % sequence:
            raise ConfigError(
                f"sp_size = {sequence}: the {network.role} ({network.name}) has {network.heads} attention heads, which "
                "cannot be dealt to so many processes: give a number that divides them"
            )


def meshes(run: PlannedRun, machine: Machine) -> Iterator[PlannedMesh]:
    """The layouts of so many devices: copies × pieces of groups that compute layers together; and where rows are long,
    their tokens over neighbours."""
    like = run.mesh
    if like.zero_stage is not None:
        yield from (replace(like, zero_stage=stage) for stage in (2, 3))
        return
    for tensor in _tensor_sizes(run, machine):
        groups = like.devices // tensor
        expert = like.expert if tensor == like.tensor else 1
        for shard in [1] if run.undivided else [each for each in range(1, groups + 1) if groups % each == 0]:
            for sequence in _sequence_sizes(run, machine, groups) if tensor == 1 else (1,):
                yield PlannedMesh(groups // shard, shard, tensor, sequence, expert)


def _tensor_sizes(run: PlannedRun, machine: Machine) -> list[int]:
    """How many processes may compute layers together, within a node: as every network that lies so allows."""
    if run.undivided is not None:
        return [1]
    able = set.intersection(*(set(each.tensor_sizes) for each in run.networks if not each.whole), {1, *TOGETHER,
                            run.mesh.tensor})  # fmt: skip
    return [size for size in sorted(able) if run.mesh.devices % size == 0
            and (size <= machine.devices or size == run.mesh.tensor)]  # fmt: skip


def _sequence_sizes(run: PlannedRun, machine: Machine, groups: int) -> list[int]:
    """Over how many processes the tokens of rows may lie: where rows are long, or it is asked for."""
    asked = run.mesh.sequence
    if asked == 1 and run.rows.tokens(1) < LONG_ROW:
        return [1]
    fits = [size for size in dict.fromkeys((1, *TOGETHER, asked)) if groups % size == 0 and size <= machine.devices]
    return [size for size in fits if all(_deals(each, size) for each in run.trained) or size == asked]


def _deals(network: PlannedNetwork, size: int) -> bool:
    """Whether its passes can lie over so many processes: its heads are dealt out, and packed rows are known to work."""
    return size == 1 or (network.heads % size == 0 and network.passes.is_traced)
