"""Which layouts of a run fit on the devices, and which of them is fastest: an estimate, ranked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nearstep.planning.machines import Machine
from nearstep.planning.memory import PlannedRun, PlannedStage, peak_of, stages
from nearstep.planning.quantities import PlannedMesh
from nearstep.planning.work import PhaseTime, Transfer, times, transfers

HALVINGS = 6  # of the budgets of tokens and rows
NEAR = 0.99  # of the time of another: then the one with more memory left comes first


@dataclass(frozen=True)
class PlannedLayout:
    """A run in one layout on a machine: what it needs, sends and takes."""

    run: PlannedRun
    machine: Machine
    stages: tuple[PlannedStage, ...]
    transfers: tuple[Transfer, ...]
    times: tuple[PhaseTime, ...]

    @staticmethod
    def of(run: PlannedRun, machine: Machine) -> "PlannedLayout":
        """Work it out."""
        return PlannedLayout(run, machine, tuple(stages(run)), tuple(transfers(run)), tuple(times(run, machine)))

    @property
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

    def settings(self) -> dict[str, object]:
        """What makes a run lie like this; none of it changes a number of the run."""
        mesh, rows = self.run.mesh, self.run.rows
        together = {"tp_size": mesh.tensor, "ep_size": mesh.expert}
        return {
            **{name: size for name, size in together.items() if size > 1},
            "dp_shard": mesh.shard, "dp_replicate": mesh.replicate, "gradient_checkpointing": self.run.recomputed,
            "per_device_train_batch_size": rows.micro_rows, "max_tokens_per_microbatch": rows.micro_tokens,
            "local_rollout_forward_batch_size": rows.forward_rows,
        }  # fmt: skip


def meshes(like: PlannedMesh) -> list[PlannedMesh]:
    """The layouts of so many devices: dp_replicate × dp_shard groups of those that compute layers together, which are
    as large as the settings say: which sizes a family can be divided by is told by its plan alone."""
    groups = like.devices // like.tensor
    return [
        replace(like, replicate=groups // shard, shard=shard) for shard in range(1, groups + 1) if groups % shard == 0
    ]


def proposals(run: PlannedRun, machine: Machine) -> list[PlannedLayout]:
    """For every mesh the fastest variant that fits, or the smallest where none does; those that fit first, by time.

    Variants differ in what changes no number of the run: activations kept or made again, rows and tokens of a pass.
    """
    batch = run.rows.rows * run.mesh.row_groups
    found = []
    for mesh in meshes(run.mesh):
        own = replace(run.rows, rows=max(1, -(-batch // mesh.row_groups)))
        variants = [PlannedLayout.of(each, machine) for each in _variants(replace(run, mesh=mesh, rows=own))]
        fitting = [each for each in variants if each.fits]
        found.append(_fastest(fitting) if fitting else max(variants, key=lambda each: each.free))
    return sorted(found, key=lambda each: (not each.fits, each.seconds if each.fits else -each.free))


def _fastest(layouts: Sequence[PlannedLayout]) -> PlannedLayout:
    """The first of those that are about as fast as the fastest: variants come with the fewest changes first."""
    least = min(each.seconds for each in layouts)
    return next(each for each in layouts if each.seconds * NEAR <= least)


def _variants(run: PlannedRun) -> Iterator[PlannedRun]:
    rows = run.rows
    for recomputed in dict.fromkeys((run.recomputed, True)):
        micro_rows, forward_rows = rows.pass_rows, rows.decoding_rows
        for halving in range(HALVINGS):
            tokens = max(rows.tokens(1), rows.micro_tokens >> halving)
            own = replace(rows, micro_rows=rows.micro_rows if not halving else max(1, micro_rows >> halving),
                          forward_rows=rows.forward_rows if not halving else max(1, forward_rows >> halving),
                          micro_tokens=rows.micro_tokens if not halving else tokens)  # fmt: skip
            yield replace(run, recomputed=recomputed, rows=own)
            if max(own.pass_rows, own.decoding_rows) == 1:
                break


@dataclass(frozen=True)
class Remedy:
    """A change that would save memory, and how much of the peak."""

    change: str
    saves: int
    fits: bool


def remedies(layout: PlannedLayout) -> list[Remedy]:
    """What would make room where a layout does not fit: more devices, and what changes the run itself."""
    run, found = layout.run, []
    for change, other in _other_runs(run):
        peak = peak_of(stages(other)).bytes
        found.append(Remedy(change, layout.peak.bytes - peak, peak <= layout.machine.usable_bytes))
    return sorted((each for each in found if each.saves > 0), key=lambda each: (not each.fits, -each.saves))


def _other_runs(run: PlannedRun) -> Iterator[tuple[str, PlannedRun]]:
    if not run.recomputed:
        yield "gradient_checkpointing = true", replace(run, recomputed=True)
    if run.rows.pass_rows > 1:
        budget = max(run.rows.tokens(1), run.rows.micro_tokens // 4)
        smaller = replace(run.rows, micro_tokens=budget, micro_rows=1, forward_rows=max(1, run.rows.forward_rows // 4))
        yield (
            f"per_device_train_batch_size = 1, local_rollout_forward_batch_size = {smaller.forward_rows}",
            replace(run, rows=smaller),
        )
    without = [network for network in run.networks if network.role != "reference"]
    if len(without) < len(run.networks):
        yield "kl_coef = 0 (no reference)", replace(run, networks=tuple(without))
    separate = [network for network in run.networks if network.role == "value" and not network.on_policy]
    if separate:
        others = tuple(network for network in run.networks if network.role != "value")
        yield "critic_trunk = shared (a head on the policy's trunk)", replace(run, networks=others)
    served = tuple(network for network in run.networks if network.role != "reward")
    if len(served) < len(run.networks):
        yield (
            "reward_url (the reward model in a process of its own: nearstep serve-reward)",
            replace(run, networks=served),
        )
    groups = run.mesh.devices // run.mesh.tensor
    if run.mesh.shard < groups:
        mesh = replace(run.mesh, replicate=1, shard=groups)
        yield f"dp_shard = {groups} (pieces over all devices)", replace(run, mesh=mesh)
    for times_more in (2, 4, 8):
        mesh = replace(run.mesh, replicate=1, shard=times_more * groups)
        yield f"{mesh.devices} devices with dp_shard = {mesh.shard}", replace(run, mesh=mesh)
