"""A plan in words and tables, and as one JSON object."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from nearstep.planning.layouts import PlannedLayout
from nearstep.planning.memory import PlannedStage
from nearstep.planning.plan import Plan
from nearstep.planning.quantities import PlannedNetwork
from nearstep.planning.work import PHASES

GIB, MIB = 2**30, 2**20
SHOWN_TERMS = 8
SHOWN_REMEDIES = 5
ESTIMATE = (
    "Memory is worked out from the weights and the tensors of a pass, for rows that are all as long as they may be. "
    "Time is an estimate by rates: good for an order, not for a clock."
)
ON_SHEETS = (
    "The rates are peaks of the data sheet, of which {flops:.0%} (products), {memory:.0%} (memory) and {links:.0%} "
    "(links) are reckoned with."
)


def size_text(count: int | float) -> str:
    """Bytes for people."""
    return f"{count / GIB:,.1f} GiB" if abs(count) >= GIB / 2 else f"{count / MIB:,.0f} MiB"


def time_text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def count_text(count: int) -> str:
    """Weights for people."""
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,.0f}"


def tell_plan(plan: Plan, shown: int) -> None:
    """Print a plan."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False, markup=False)
    machine, rows = plan.machine, plan.asked.run.rows
    devices = plan.asked.run.mesh.devices
    console.print(
        f"{devices} × {machine.name}, {size_text(machine.usable_bytes)} usable each of "
        f"{size_text(machine.memory_bytes)}. {plan.batch:,} episodes an update, {rows.rows:,} on each process; rows of "
        f"{rows.prompt:,} + {rows.response:,} tokens."
    )
    console.print(_networks(plan))
    for note in plan.notes:
        console.print(note)
    console.print(_stage_table(plan.asked))
    console.print(_verdict(plan.asked))
    console.print(_layout_table(plan.proposed[:shown]))
    for line in _advice(plan):
        console.print(line)
    console.print(ESTIMATE)
    if not machine.measured:
        console.print(ON_SHEETS.format(
            flops=machine.attained_flops, memory=machine.attained_memory, links=machine.attained_links
        ))  # fmt: skip


def _networks(plan: Plan) -> Table:
    table = Table("network", "weights", "of them train", "type", "kept of a token", "from", title="Networks")
    for each in plan.asked.run.networks:
        kept = each.passes.kept(plan.asked.run.every, plan.asked.run.mesh_of(each).tensor)
        table.add_row(
            each.role + (f" × {each.copies}" if each.copies > 1 else ""), count_text(each.size.count),
            count_text(each.size.trained) if each.trains else "none", _bits(each),
            f"{kept / 1024:,.0f} KiB" if each.trains and not each.on_policy else "", each.name,
        )  # fmt: skip
    return table


def _bits(network: PlannedNetwork) -> str:
    """The type of its weights; of packed ones in how many bits most lie."""
    packed = any(each.packed is not None for each in network.size.weights)
    return f"4 bit in {8 * network.size.bytes_each}" if packed else f"{8 * network.size.bytes_each} bit"


def _stage_table(layout: PlannedLayout) -> Table:
    table = Table("phase", "stage", "memory of a process", title=f"As the settings have it: {layout.run.mesh.text()}")
    for stage in layout.stages:
        table.add_row(stage.phase, stage.name, size_text(stage.bytes), style="bold" if stage is layout.peak else None)
    return table


def _verdict(layout: PlannedLayout) -> str:
    peak = layout.peak
    if layout.fits:
        head = f"It fits: at its peak ({peak.name}) {size_text(layout.free)} are free. There it holds"
    else:
        head = f"It does not fit: at its peak ({peak.name}) {size_text(-layout.free)} are missing. There it holds"
    return f"{head} {', '.join(_largest(peak))}."


def _largest(stage: PlannedStage) -> Iterator[str]:
    terms = sorted(stage.terms, key=lambda term: -term.bytes)
    yield from (f"{size_text(each.bytes)} {each.what} of the {each.role}" for each in terms[:SHOWN_TERMS])
    if rest := sum(each.bytes for each in terms[SHOWN_TERMS:]):
        yield f"{size_text(rest)} else"


def _layout_table(layouts: Sequence[PlannedLayout]) -> Table:
    table = Table("layout", "passes", "peak", "free", *PHASES, "an update", "sent", title="Layouts, the best first")
    for each in layouts:
        every = each.run.every
        again = {0: "", 1: ", recomputed"}.get(every, f", every {every}. layer recomputed")
        passes = f"{each.run.pass_rows} rows{again}"
        times = [time_text(phase.seconds) for phase in each.times] if each.fits else [""] * len(PHASES)
        sent = sum(transfer.bytes for transfer in each.transfers)
        free = size_text(each.free) if each.fits else f"{size_text(-each.free)} short"
        in_all = time_text(each.seconds) if each.fits else ""
        whole = f", whole: {' '.join(each.whole_roles())}" if each.whole_roles() else ""
        table.add_row(
            each.run.mesh.text() + whole, passes, size_text(each.peak.bytes), free, *times, in_all, size_text(sent)
        )
    return table


def _advice(plan: Plan) -> Iterator[str]:
    """The settings of the best layout; where none fits, what to change."""
    best = plan.proposed[0]
    if best.fits:
        yield f"The best as settings: {' '.join(_flag(*setting) for setting in settings_of(plan, best).items())}"
        return
    yield f"No layout fits. The nearest, {best.run.mesh.text()}, is {size_text(-best.free)} short. What would help it:"
    for remedy in plan.remedies[:SHOWN_REMEDIES]:
        then = "and then it fits" if remedy.fits else "which is not enough alone"
        yield f"  {remedy.change}: {size_text(remedy.saves)} less, {then}"
    yield "  use_peft (adapters have next to no gradients and moments), dtype = bfloat16, or a smaller model"


def _flag(name: str, value: object) -> str:
    """A setting as the command line has it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, tuple):
        return f"--{name} {' '.join(map(str, value))}"
    return f"--{name} {value}"


def settings_of(plan: Plan, layout: PlannedLayout) -> dict[str, object]:
    """The settings of a layout. batch_size is among them: without it rows at a time would size the batch."""
    return {"batch_size": plan.batch, **layout.settings(plan.asked.run)}


def plan_record(plan: Plan, shown: int) -> dict[str, object]:
    """A plan as JSON: bytes, seconds, counts."""
    machine = plan.machine
    return {
        "estimate": ESTIMATE,
        "machine": {"name": machine.name, "usable_bytes": machine.usable_bytes, "measured": machine.measured},
        "devices": plan.asked.run.mesh.devices,
        "episodes": plan.batch,
        "networks": [
            {
                "role": each.role, "from": each.name, "weights": each.size.count,
                "trained": each.size.trained if each.trains else 0, "bytes_each": each.size.bytes_each,
                "traced": each.passes.is_traced,
            }
            for each in plan.asked.run.networks
        ],
        "notes": plan.notes,
        "asked": _layout_record(plan, plan.asked),
        "proposed": [_layout_record(plan, each) for each in plan.proposed[:shown]],
        "remedies": [vars(each) for each in plan.remedies],
    }  # fmt: skip


def _layout_record(plan: Plan, layout: PlannedLayout) -> dict[str, object]:
    return {
        "settings": settings_of(plan, layout),
        "fits": layout.fits,
        "peak_bytes": layout.peak.bytes,
        "free_bytes": layout.free,
        "peak_stage": layout.peak.name,
        "stages": [
            {
                "phase": stage.phase,
                "name": stage.name,
                "bytes": stage.bytes,
                "terms": [vars(each) for each in stage.terms],
            }
            for stage in layout.stages
        ],
        "sent": [
            {"phase": each.phase, "role": each.role, "what": each.what, "bytes": each.bytes, "processes": each.group}
            for each in layout.transfers
        ],
        "seconds": {each.phase: each.seconds for each in layout.times} | {"update_in_all": layout.seconds},
    }  # fmt: skip
