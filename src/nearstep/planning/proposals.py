"""Which layouts of a run fit on the devices, and which of them is fastest: an estimate, ranked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nearstep.planning.layouts import PlannedLayout, meshes
from nearstep.planning.machines import Machine
from nearstep.planning.memory import peak_of, stages
from nearstep.planning.run import PlannedRun

NEAR = 0.99  # of the time of another: then the one with fewer changes, or with more memory left, comes first
EVERY = (4, 2, 1)  # n-th layer that is recomputed, from the fewest to all
MAY_BE_WHOLE = (("value",), ("reference",), ("value", "reference"))


def proposals(run: PlannedRun, machine: Machine) -> list[PlannedLayout]:
    """For every mesh the fastest variant that fits, or the smallest where none does; those that fit first, by time.

    Variants differ in what changes no number of the run: roles that are whole where others are in pieces, activations
    kept or made again, rows and tokens of a pass.
    """
    batch = run.rows.rows * run.mesh.row_groups
    found = []
    for mesh in meshes(run, machine):
        if mesh.row_groups > batch:
            continue  # processes without a row
        lying = replace(run, mesh=mesh, rows=replace(run.rows, rows=-(-batch // mesh.row_groups)))
        found.append(_best([_variant(each, machine) for each in _with_whole_roles(lying)]))
    return sorted(found, key=lambda each: (not each.fits, each.seconds if each.fits else -each.free))


def _best(layouts: Sequence[PlannedLayout]) -> PlannedLayout:
    """Of those that fit the first that is about as fast as the fastest: variants come with the fewest changes first.
    Where none fits, the smallest."""
    fitting = [each for each in layouts if each.fits]
    if not fitting:
        return max(layouts, key=lambda each: each.free)
    least = min(each.seconds for each in fitting)
    return next(each for each in fitting if each.seconds * NEAR <= least)


def _with_whole_roles(run: PlannedRun) -> Iterator[PlannedRun]:
    """The run, and with roles whole that have weights of their own, where others lie in pieces."""
    yield run
    if not run.mesh.in_pieces:
        return
    own = {each.role for each in run.networks if not each.whole and not each.weights_of_policy and not each.on_policy}
    for roles in MAY_BE_WHOLE:
        if own.issuperset(roles):
            networks = tuple(replace(each, whole=each.whole or each.role in roles) for each in run.networks)
            yield replace(run, networks=networks)


def _variant(run: PlannedRun, machine: Machine) -> PlannedLayout:
    """The fastest that fits of passes of fewer rows and of recomputed layers, else the smallest. Smaller passes are
    never faster: of each kind the first that fits will do."""
    kinds = []
    for every in dict.fromkeys((run.every, *(EVERY if run.every == 0 else (1,)))):
        chosen = _first_that_fits(_smaller_passes(replace(run, every=every)), machine, ("update",))
        kinds.append(_first_that_fits(_fewer_rows(chosen.run), machine, ("generate", "score")))
    return _best(kinds)


def _first_that_fits(runs: Iterator[PlannedRun], machine: Machine, phases: Sequence[str]) -> PlannedLayout:
    """The first whose stages of these phases have room, else the last."""
    layout = None
    for run in runs:
        layout = PlannedLayout(run, machine)
        there = [stage.bytes for stage in layout.stages if stage.phase in phases]
        if max(there, default=0) <= machine.usable_bytes:
            break
    assert layout is not None, "there is one run at least"
    return layout


def _smaller_passes(run: PlannedRun) -> Iterator[PlannedRun]:
    """The run, and with half the rows and tokens in a pass of training, and so on."""
    yield run
    rows = run.rows
    micro_rows, tokens = rows.pass_rows(), rows.micro_tokens
    while micro_rows > 1:
        micro_rows, tokens = micro_rows // 2, max(rows.tokens(1), tokens // 2)
        yield replace(run, rows=replace(rows, micro_rows=micro_rows, micro_tokens=tokens))


def _fewer_rows(run: PlannedRun) -> Iterator[PlannedRun]:
    """The run, and with half the rows that are generated and scored at a time, and so on."""
    yield run
    forward_rows = run.rows.decoding_rows
    while forward_rows > 1:
        forward_rows //= 2
        yield replace(run, rows=replace(run.rows, forward_rows=forward_rows))


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
    if run.every != 1:
        yield "gradient_checkpointing = true", replace(run, every=1)
    if run.rows.pass_rows() > 1:
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
    if run.is_gpu and run.undivided in (None, "offload_roles") and run.mesh.devices == 1:
        idle = tuple(dict.fromkeys(each.role for each in run.networks if not each.weights_of_policy
                                   and not each.on_policy and each.role != "policy"))  # fmt: skip
        if idle and set(idle) != set(run.offloaded):
            yield f"offload_roles = {' '.join(idle)}", replace(run, offloaded=idle)
    if run.undivided is None and run.mesh.zero_stage is None:
        yield from _in_more_pieces(run)


def _in_more_pieces(run: PlannedRun) -> Iterator[tuple[str, PlannedRun]]:
    groups = run.mesh.row_groups
    if run.mesh.shard < groups:
        mesh = replace(run.mesh, replicate=1, shard=groups)
        yield f"dp_shard = {groups} (pieces over all devices)", replace(run, mesh=mesh)
    for times_more in (2, 4, 8):
        mesh = replace(run.mesh, replicate=1, shard=times_more * groups)
        yield f"{mesh.devices} devices with dp_shard = {mesh.shard}", replace(run, mesh=mesh)
