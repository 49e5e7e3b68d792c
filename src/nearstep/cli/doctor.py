"""`nearstep doctor`: whether a run is well, or, with no run, whether the machine is fit for one."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nearstep.config.settings import Problem, Settings, accepts_old_names, option

if TYPE_CHECKING:
    from nearstep.cli.machine import Check
    from nearstep.reports.health.verdict import Verdict

ILL = 3  # the exit code of an ill run, and of a machine with a problem
UNKNOWN = 1  # that of a run of which nothing can be said


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Settings):
    """What is looked at, and how it is told."""

    run: str | None = option(
        None, "folder of a run, going on or over; without one the machine is checked", is_place=True
    )
    json: bool = option(False, "print one JSON object instead of text")
    measure: str | None = option(
        None, "measure how fast the machine is, and write it to this file for nearstep plan --machine", is_place=True
    )

    def problems(self) -> Iterator[Problem]:
        """A run that is not there."""
        if self.run is not None and not Path(self.run).is_dir():
            yield Problem(f"run = {self.run} is no folder: nearstep doctor RUN", ("run",))
        if self.run is not None and self.measure is not None:
            yield Problem("measure is of the machine, run of a run: leave one out", ("run", "measure"))


SECTIONS = (("Doctor", "run"),)
NOTE = (
    f"Exit code: 0 for a run that is healthy or to be watched and for a machine that is fit, {ILL} for a run that is "
    "ill "
    "and for a machine with a problem, 1 or 2 where nothing could be said. docs/health.md has every rule."
)


def run_doctor(options: DoctorOptions) -> int:
    """Print the verdict on a run, or what there is to say of the machine; the exit code."""
    if options.measure is not None:
        return _measure(Path(options.measure), as_json=options.json)
    return _machine(as_json=options.json) if options.run is None else _run(Path(options.run), as_json=options.json)


def _measure(file: Path, *, as_json: bool) -> int:
    """Measure products, memory, calls and messages between processes, and keep them."""
    from nearstep.planning.machines import write_machine
    from nearstep.planning.measure import this_machine

    machine = this_machine(links=True)
    write_machine(machine, file)
    if as_json:
        print(file.read_text(encoding="utf-8"), end="")
        return 0
    links = [f"{count} processes send {rate / 1e9:.2f} GB/s each" for count, rate in machine.link_rates.items()]
    print(
        f"{machine.name}: {machine.memory_bytes / 2**30:.1f} GiB; products {machine.float32_flops / 1e9:,.0f} GFLOP/s "
        f"(float32), {machine.bfloat16_flops / 1e9:,.0f} (bfloat16); memory {machine.memory_rate / 1e9:.1f} GB/s; "
        f"a call {1e6 * machine.call_seconds:.1f} µs; {', '.join(links) or 'one process'}. Written to {file}: "
        f"nearstep plan --machine {file}"
    )
    return 0


def _run(folder: Path, *, as_json: bool) -> int:
    from nearstep.reports.health.verdict import judge_run
    from nearstep.reports.run_folder import RunFolder
    from nearstep.reports.unfinished import not_over

    run = RunFolder(folder)
    verdict = judge_run(run)
    if verdict.state == "unknown":
        run.require_updates()
    if as_json:
        print(json.dumps(verdict.record(), ensure_ascii=False, indent=2))
    else:
        print("\n".join(line for line in (not_over(folder), verdict_text(verdict, folder)) if line is not None))
    return {"ill": ILL, "unknown": UNKNOWN}.get(verdict.state, 0)


def verdict_text(verdict: "Verdict", folder: Path) -> str:
    """The verdict, its cause, and everything that speaks for it."""
    head = {
        "healthy": f"{folder} is healthy after update {verdict.update}: no rule has anything to say.",
        "unknown": f"{folder} has no metrics yet: nothing can be said.",
        "watch": f"{folder} is to be watched (update {verdict.update}).",
        "ill": f"{folder} is ill (update {verdict.update}).",
    }[verdict.state]
    lines = [head]
    if (cause := verdict.cause) is not None:
        lines.append(f"Cause: {cause.rule.title}.")
    for alert in verdict.alerts:
        lines += [
            "",
            f"{alert.seen.level}  {alert.rule.name}: {alert.rule.title}",
            f"  seen     {alert.seen.text} (since update {alert.seen.update})",
            *([f"  follows  from {', '.join(alert.follows_from)}"] if alert.follows_from else []),
            f"  look at  {alert.rule.look_at}",
            f"  next     {alert.rule.next}",
        ]
    return "\n".join(lines)


def _machine(*, as_json: bool) -> int:
    from nearstep.cli.machine import checks

    found = list(checks())
    if as_json:
        print(json.dumps({"fit": _is_fit(found), "checks": [asdict(check) for check in found]}, indent=2))
    else:
        for check in found:
            print(f"{check.state:<8} {check.name}: {check.text}" + (f". {check.next}" if check.next else ""))
    return 0 if _is_fit(found) else ILL


def _is_fit(found: "list[Check]") -> bool:
    return all(check.state != "problem" for check in found)
