"""What several processes bring, by backend, at equal work: time of an update, memory of a process, bytes moved.

    python -m benchmarks.scaling_processes                       # 1, 2 and 4 processes, every backend: 40 minutes
    python -m benchmarks.scaling_processes --only ddp --processes 1 2   # zero2, zero3: where DeepSpeed is installed

One update of four epochs on the same prompts and response lengths, shared by the processes, which are forked after the
imports and speak over gloo; the first update is a warm-up. Memory of weights, gradients and moments is counted tensor
by tensor, as the process holds it right before an optimizer step. Bytes are counted at torch's collectives: what a
process sends to others in a ring. Ratios are made within one run of this script, of wall times: nothing else may run.
`apart` is what the machine gives at most: cores share caches, memory and clock.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.machine import at_least_one, machine
from benchmarks.harness.meter import Meter, ResidentMemory
from benchmarks.harness.results import MIB, RESULTS, table, write_results
from benchmarks.harness.workload import SIZES, Workload, arbitrary_reward, causal_model, scalar_model, tokenizer
from benchmarks.plan_check import in_processes

PROCESSES = (1, 2, 4)
UPDATES = 3  # the first is a warm-up
# Of torch's collectives: which argument is the group, and the share of the full tensor that each of n sends in a ring.
RING: Mapping[str, tuple[int, Callable[[int], float]]] = {
    "allreduce_": (1, lambda n: 2 * (n - 1) / n),
    "_allgather_base_": (2, lambda n: (n - 1) / n),
    "_reduce_scatter_base_": (2, lambda n: (n - 1) / n),
    "broadcast_": (1, lambda n: 1.0),
    "alltoall_base_": (2, lambda n: (n - 1) / n),
}


@dataclass(frozen=True)
class BackendRow:
    """A backend by name: the settings that choose it, for so many processes; None where it cannot have as many."""

    name: str
    settings: Callable[[int], dict[str, Any] | None]
    apart: bool = False  # each process trains a network of its own on its share of the rows


def _several(settings: Mapping[str, Any]) -> Callable[[int], dict[str, Any] | None]:
    return lambda processes: dict(settings) if processes > 1 else None


# Others join here by name, with the settings that choose them.
BACKENDS = (
    BackendRow("ddp", lambda processes: {}),
    BackendRow("apart", _several({}), apart=True),  # what the machine gives to processes that send nothing
    BackendRow("fsdp2", lambda processes: {"dp_shard": processes} if processes > 1 else None),
    BackendRow("hsdp", lambda processes: {"dp_shard": 2, "dp_replicate": processes // 2} if processes >= 4 else None),
    BackendRow("tp", lambda processes: {"tp_size": processes} if processes > 1 else None),
    BackendRow("ulysses", lambda processes: {"sp_size": processes} if processes > 1 else None),
    BackendRow("zero2", _several({"zero_stage": 2})),
    BackendRow("zero3", _several({"zero_stage": 3})),
)


@dataclass
class BytesMoved(TorchDispatchMode):
    """Bytes that this process sends to others, counted at torch's collectives, by their names."""

    sent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "c10d" and name in RING:
            place, share = RING[name]
            count = dist.ProcessGroup.unbox(args[place]).size()
            largest = max((each.nbytes for each in _tensors(args)), default=0)
            self.sent[name] = self.sent.get(name, 0.0) + largest * share(count)
        return func(*args, **(kwargs or {}))


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _tensors(each)


@dataclass
class HeldBytes:
    """The most that weights, gradients and moments of the optimizers took, right before a step, in this process."""

    weights: int = 0
    gradients: int = 0
    moments: int = 0

    def watch(self, optimizers: Sequence[torch.optim.Optimizer], networks: Sequence[nn.Module]) -> None:
        """Count before every step of these."""
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._count(optimizers, networks))

    def _count(self, optimizers: Sequence[torch.optim.Optimizer], networks: Sequence[nn.Module]) -> None:
        from nearstep.scale.shards import own_piece

        weights = {id(each): own_piece(each) for network in networks for each in network.parameters()}
        stepped = [each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]]
        weights |= {id(each): own_piece(each) for each in stepped}
        moments = [
            each
            for optimizer in optimizers
            for state in optimizer.state.values()
            for each in _tensors([*state.values()])
        ]
        self.weights = max(self.weights, sum(each.nbytes for each in weights.values()))
        self.gradients = max(
            self.gradients, sum(own_piece(each.grad).nbytes for each in stepped if each.grad is not None)
        )
        self.moments = max(self.moments, sum(own_piece(each).nbytes for each in moments))


def measure(workload: Workload, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Updates of the workload in this process, which may be one of several."""
    from nearstep import PPOConfig, PPOTrainer
    from nearstep.training.loop import train
    from nearstep.training.state import State

    config = PPOConfig(
        output_dir=str(folder / "run"), total_episodes=UPDATES * workload.rows, batch_size=workload.rows, use_cpu=True,
        per_device_train_batch_size=workload.micro_rows, num_ppo_epochs=workload.epochs, stop_token="none",
        response_length=workload.response_length, num_sample_generations=0, seed=0, **settings,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer(workload), model=causal_model(workload),
        value_model=scalar_model(workload, seed=3), reward_funcs=arbitrary_reward,
        train_dataset=[{"input_ids": ids} for ids in workload.prompts()],
    )  # fmt: skip
    recipe, held, moved = trainer.recipe, HeldBytes(), BytesMoved()
    learners = [each for each in (recipe.learners.policy, recipe.learners.critic) if each is not None]
    held.watch([each.optimizer for each in learners], [each.network for each in learners])
    meter = Meter(ResidentMemory())
    meter.start()
    recipe = replace(recipe, clock=meter, report=replace(recipe.report, clock=meter))
    with recipe.report.reporter as reporter, counted(moved):
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, State())
    meter.mark(None)
    updates = [{phase: vars(spent) for phase, spent in update.items()} for update in meter.updates]
    sent = {name: total / UPDATES for name, total in moved.sent.items()}
    return {"updates": updates, "held": asdict(held), "sent": sent}


def measured_in(
    processes: int, backend: BackendRow, settings: Mapping[str, Any], workload: Workload
) -> list[dict[str, Any]]:
    """What each of the processes measured."""
    with tempfile.TemporaryDirectory() as place:

        def work() -> dict[str, Any]:
            if not backend.apart:
                return measure(workload, settings, Path(place))
            rank = os.environ["RANK"]
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]
            share = replace(workload, rows=workload.rows // processes)
            return measure(share, settings, Path(place) / rank)

        return in_processes(processes, work, Path(place))


@contextmanager
def counted(moved: BytesMoved) -> Iterator[None]:
    """Count what is sent inside; nothing where there is one process."""
    if not dist.is_initialized():
        yield
        return
    with moved:
        yield


def summary(backend: str, processes: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The slowest process says how long an update takes, the fullest how much memory."""
    walls = [
        [sum(spent["wall_seconds"] for spent in update.values()) for update in one["updates"][1:]] for one in found
    ]
    held = [sum(one["held"].values()) for one in found]
    return {
        "backend": backend, "processes": processes, "seconds": max(median(each) for each in walls),
        "held_bytes": max(held), "sent_bytes": sum(found[0]["sent"].values()), "by_process": list(found),
    }  # fmt: skip


def page(rows: Sequence[Mapping[str, Any]], workload: Workload, disturbed: bool) -> str:
    """The table: each row beside one process of the same run."""
    alone = next((row for row in rows if row["processes"] == 1), None)
    lines = []
    for row in rows:
        speed = "" if alone is None else f"{alone['seconds'] / row['seconds']:.2f}"
        share = "" if alone is None else f"{row['held_bytes'] / alone['held_bytes']:.2f}"
        lines.append([
            row["backend"], str(row["processes"]), f"{row['seconds']:.1f}", speed, f"{row['held_bytes'] / MIB:,.0f}",
            share, f"{row['sent_bytes'] / MIB:,.0f}",
        ])  # fmt: skip
    columns = ["backend", "processes", "seconds an update", "times the speed of one",
               "MiB of weights, gradients, moments",
               "share of one", "MiB sent an update"]  # fmt: skip
    note = (
        "Other programs ran on the machine meanwhile: the seconds and speeds are worth little.\n" if disturbed else ""
    )
    return (
        f"# Several processes by backend\n\n{table(columns, lines)}\n{workload.rows} episodes an update over all "
        f"processes (`apart`: their share of them each, with a network of its own), model {workload.model!r}, "
        f"{workload.epochs} epochs, one thread each, gloo on one machine.\n{note}"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write benchmarks/results/scaling_processes.*."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=[each.name for each in BACKENDS])
    parser.add_argument("--processes", nargs="+", type=at_least_one, default=list(PROCESSES))
    parser.add_argument("--model", choices=list(SIZES), default="s")
    parser.add_argument("--rows", type=at_least_one, default=64, help="episodes of an update over all processes")
    parser.add_argument("--disturbed", action="store_true", help="say in the results that other programs ran")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    workload = Workload("processes", "ppo", model=options.model, rows=options.rows, response_length=64)
    rows = []
    for processes in options.processes:
        for backend in BACKENDS:
            settings = backend.settings(processes)
            if settings is None or (options.only and backend.name not in options.only):
                continue
            if "zero_stage" in settings and find_spec("deepspeed") is None:
                print(f"{backend.name} is left out: DeepSpeed is not installed", flush=True)
                continue
            found = measured_in(processes, backend, settings, workload)
            rows.append(summary(backend.name, processes, found))
            print(json.dumps({name: value for name, value in rows[-1].items() if name != "by_process"}), flush=True)
    print(page(rows, workload, options.disturbed))
    write_results(
        options.output, "scaling_processes", {"rows": rows}, page(rows, workload, options.disturbed), machine()
    )


if __name__ == "__main__":
    main()
