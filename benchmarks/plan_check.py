"""`nearstep plan` against what runs take: peak memory and the order of times, over families, types and layouts.

    python -m benchmarks.plan_check                     # all configurations: about 10 minutes of one core
    python -m benchmarks.plan_check --only moe lora     # some, by their names
    python -m benchmarks.plan_check --keep FILE         # what FILE holds is not measured again

Every configuration trains one update, two epochs long, in a process forked after the imports: a tiny run brings in what
is loaded at first use, then memory is counted above what the process holds. All rows are as long as they may be, as the
plan has it. Memory is resident pages; of several processes it is the one with most.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from statistics import correlation
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from benchmarks.harness.machine import machine
from benchmarks.harness.meter import Meter, ResidentMemory
from benchmarks.harness.results import MIB, RESULTS, table, write_results
from benchmarks.harness.workload import Workload, arbitrary_reward, tokenizer
from nearstep import PPOConfig, PPOTrainer
from nearstep.config.planning import PlanConfig
from nearstep.planning.machines import write_machine
from nearstep.planning.measure import this_machine
from nearstep.planning.plan import make_plan
from nearstep.planning.telling import plan_record
from nearstep.training.loop import train
from nearstep.training.state import State

VOCABULARY = 8192
WIDTHS = {"vocab_size": VOCABULARY, "max_position_embeddings": 1024, "bos_token_id": None,
          "eos_token_id": VOCABULARY - 2, "pad_token_id": VOCABULARY - 1}  # fmt: skip
USUAL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
FAMILIES: Mapping[str, dict[str, Any]] = {  # by a name, of which the first word is transformers' own
    "llama": {**USUAL, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 1024},
    "gpt_neox": {**USUAL, "intermediate_size": 1024},
    "gemma2": {**USUAL, "num_key_value_heads": 4, "head_dim": 32},
    "qwen3_moe": {**USUAL, "num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 32, "num_experts": 8,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 256},
    "gpt2 wide": {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 1024},
    "gpt_neox narrow": {**USUAL, "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 10,
                        "num_attention_heads": 6},
}  # fmt: skip
ROWS, PROMPT, RESPONSE, EPOCHS = 4, 96, 32, 2
MACHINE = "rates of the machine"  # under which name they are kept beside the configurations
NEAR = 0.15  # how far the plan's memory may be from what was measured


@dataclass(frozen=True)
class Case:
    """A configuration: a family, and what differs from a separate critic and a reward model in float32."""

    name: str
    family: str = "llama"
    reward_model: bool = True
    processes: int = 1
    settings: Mapping[str, object] = field(default_factory=dict)
    rows: int = ROWS
    prompt: int = PROMPT


WITHOUT_CRITIC = {"trust_region": "binary_tv", "kl_coef": 0.0, "temperature": 1.0, "advantage": "group_normalized",
                  "num_generations": 4}  # fmt: skip
HALF = {"dtype": "bfloat16"}  # products of which a processor without such units computes slowly: fewer rows
CASES = (
    Case("llama", rows=2 * ROWS),
    Case("recomputed", settings={"gradient_checkpointing": True}, rows=2, prompt=224),
    Case("every second layer", settings={"gradient_checkpointing": True, "gradient_checkpointing_every": 2}, rows=2,
         prompt=224),
    Case("budget", settings={"max_tokens_per_microbatch": 256}, rows=2 * ROWS),
    Case("shared trunk", reward_model=False, settings={"critic_trunk": "shared"}),
    Case("no critic", reward_model=False, settings=WITHOUT_CRITIC),
    Case("lora", reward_model=False, settings={"use_peft": True}),
    Case("lora, one trunk", reward_model=False, settings={"use_peft": True, "critic_trunk": "adapter"}),
    Case("gpt2", "gpt2"),
    Case("gpt2, 512 wide", "gpt2 wide"),
    Case("gpt_neox, 10 layers, longer rows", "gpt_neox narrow", rows=2, prompt=352),
    Case("gemma2", "gemma2", reward_model=False),
    Case("moe", "qwen3_moe", reward_model=False),
    Case("gpt_neox, decoupled", "gpt_neox", settings={"critic": "decoupled"}),
    Case("8-bit Adam", settings={"optim": "adamw_8bit"}),
    Case("2 processes", processes=2),
    Case("2 processes, FSDP2", processes=2, settings={"dp_shard": 2}),
    Case("2 processes, rows over both", processes=2, rows=4, prompt=224, settings={"sp_size": 2}),
    Case("2 processes, divided layers", processes=2, rows=4, settings={"tp_size": 2}),
    Case("bfloat16", rows=2, settings=HALF),
    Case("2 processes, FSDP2 bfloat16", processes=2, rows=4, settings={"dp_shard": 2, **HALF}),
    Case("gpt_neox bfloat16", "gpt_neox", rows=2, settings=HALF),
    Case("moe bfloat16", "qwen3_moe", rows=2, settings=HALF),
    Case("4 bits, one trunk", reward_model=False, rows=2,
         settings={"use_peft": True, "critic_trunk": "adapter", "load_in_4bit": True, **HALF}),
)  # fmt: skip
NEED_BITSANDBYTES = ("8-bit Adam", "4 bits, one trunk")


def settings_of(case: Case, folder: Path) -> dict[str, Any]:
    """Of the run and of the plan."""
    rows = case.rows // case.processes
    given: dict[str, Any] = {
        "model_name_or_path": str(folder / case.family), "use_cpu": True, "seed": 0,
        "output_dir": str(folder / f"run-{case.name}-{case.family}"),
        "batch_size": case.rows, "total_episodes": case.rows, "num_ppo_epochs": EPOCHS, "response_length": RESPONSE,
        "per_device_train_batch_size": rows, "stop_token": "none", "num_sample_generations": 0,
        "reward_model_path": str(folder / f"{case.family}-reward") if case.reward_model else None,
    }  # fmt: skip
    return given | dict(case.settings)


def family_config(family: str, widths: Mapping[str, Any]) -> PreTrainedConfig:
    """A small model of a family."""
    return AutoConfig.for_model(family.split()[0], **{**WIDTHS, **widths, "num_labels": 1})


NARROW = {"hidden_size": 64, "n_embd": 64, "num_hidden_layers": 2, "n_layer": 2, "intermediate_size": 64,
          "num_attention_heads": 4, "n_head": 4, "moe_intermediate_size": 32}  # fmt: skip


def make_folders(families: Sequence[str], folder: Path) -> dict[str, Any]:
    """Policies and reward models with random weights, and narrow ones for the tiny runs."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    words: PreTrainedTokenizerFast = tokenizer(Workload("", "ppo", vocabulary=VOCABULARY))
    for family in families:
        tiny = {name: NARROW.get(name, value) for name, value in FAMILIES[family].items()}
        for name, widths in ((family, FAMILIES[family]), (f"{family}-tiny", tiny)):
            for end, kind in (("", AutoModelForCausalLM), ("-reward", AutoModelForSequenceClassification)):
                kind.from_config(family_config(family, widths)).save_pretrained(folder / f"{name}{end}")
                words.save_pretrained(folder / f"{name}{end}")
    return {}


def predict(case: Case, folder: Path) -> dict[str, Any]:
    """What the plan says."""
    config = PlanConfig(
        **settings_of(case, folder),
        gpus=case.processes,
        prompt_tokens=case.prompt,
        machine=str(folder / "machine.json"),
    )
    return plan_record(make_plan(config), 0)


def train_once(case: Case, folder: Path, meter: Meter) -> None:
    """One update, under a meter in the place of its clock."""
    ids = torch.randint(0, VOCABULARY - 2, (case.rows, case.prompt), generator=torch.Generator().manual_seed(1))
    trainer = PPOTrainer(
        args=PPOConfig(**settings_of(case, folder)),
        reward_funcs=() if case.reward_model else arbitrary_reward,
        train_dataset=[{"input_ids": row} for row in ids.tolist()],
    )
    recipe = trainer.recipe
    recipe = replace(recipe, clock=meter, report=replace(recipe.report, clock=meter))
    meter.memory.in_use()
    with recipe.report.reporter as reporter:
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, State())
    meter.mark(None)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Peaks above what the process holds after a tiny run of the same kind, and CPU seconds of the phases."""
    small = replace(case, family=f"{case.family}-tiny", rows=4 * case.processes, prompt=8)
    train_once(small, folder, Meter(ResidentMemory()))
    memory = ResidentMemory()
    before = memory.in_use()
    memory.peak()
    meter = Meter(memory)
    train_once(case, folder, meter)
    (spent,) = meter.updates
    return {
        "phases": {phase: one.peak_bytes - before for phase, one in spent.items()},
        "seconds": {phase: one.cpu_seconds for phase, one in spent.items()},
    }


def in_processes(count: int, work: Callable[[], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What so many processes give back, each forked from here. Raises RuntimeError where one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            if count > 1:
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count),
                                  RANK=str(rank), LOCAL_RANK=str(rank))  # fmt: skip
            code = 1
            try:
                torch.set_num_threads(1)
                (folder / f"answer{rank}.json").write_text(json.dumps(work()))
                code = 0
            except BaseException:  # noqa: BLE001 (a process ends here)
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    if any(ends):
        raise RuntimeError("a process failed; what it said stands above")
    return [json.loads((folder / f"answer{rank}.json").read_text()) for rank in range(count)]


def measure_machine(folder: Path) -> dict[str, Any]:
    """The rates that times are predicted by."""
    write_machine(this_machine(use_cpu=True, clock=time.process_time), folder / "machine.json")
    return {}


def check(case: Case, found: list[dict[str, Any]], planned: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a configuration beside what was planned."""
    measured = max(max(one["phases"].values()) for one in found)
    expected = planned["asked"]["peak_bytes"]
    return {
        "name": case.name, "family": case.family, "processes": case.processes, "settings": dict(case.settings),
        "planned_bytes": expected, "measured_bytes": measured, "ratio": expected / measured,
        "planned_stages": {stage["name"]: stage["bytes"] for stage in planned["asked"]["stages"]},
        "measured_phases": [one["phases"] for one in found],
        "planned_seconds": planned["asked"]["seconds"], "measured_seconds": found[0]["seconds"],
    }  # fmt: skip


def seconds_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Of configurations in one process, whose processor seconds are no wait for others: as planned, and as measured."""
    return [
        (row["planned_seconds"]["update_in_all"], sum(row["measured_seconds"].values()))
        for row in rows
        if row["processes"] == 1
    ]


def rank_correlation(times: Sequence[tuple[float, float]]) -> float:
    """Spearman's of two orders: 1 for the same, 0 for any."""

    def ranks(numbers: Sequence[float]) -> list[float]:
        return [sum(other < one for other in numbers) + (numbers.count(one) - 1) / 2 for one in numbers]

    return correlation(ranks([one for one, _ in times]), ranks([other for _, other in times]))


def in_order(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Of all pairs of configurations in one process whose times differ by a tenth: how many the plan has in order."""
    times = seconds_of(rows)
    pairs = [(a, b) for a, b in combinations(times, 2) if max(a[1], b[1]) > 1.1 * min(a[1], b[1])]
    return sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in pairs), len(pairs)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, and what it comes to."""
    lines = [
        [
            row["name"], row["family"], f"{row['planned_bytes'] / MIB:,.0f}", f"{row['measured_bytes'] / MIB:,.0f}",
            f"{row['ratio']:.2f}", "yes" if abs(row["ratio"] - 1) <= NEAR else "NO",
            f"{row['planned_seconds']['update_in_all']:.1f}", f"{sum(row['measured_seconds'].values()):.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    right, pairs = in_order(rows)
    times = seconds_of(rows)
    ranks = f" Rank correlation of times: {rank_correlation(times):.2f}." if len(set(times)) > 2 else ""
    near = sum(abs(row["ratio"] - 1) <= NEAR for row in rows)
    columns = ["configuration", "family", "planned MiB", "measured MiB", "ratio", f"within {NEAR:.0%}", "planned s",
               "measured CPU s"]  # fmt: skip
    return (
        f"# Plans against measured runs\n\n{table(columns, lines)}\n{near} of {len(rows)} peaks lie within {NEAR:.0%}. "
        f"Of {pairs} pairs of configurations whose times differ by a tenth the plan has {right} in order.{ranks}\n"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Check the configurations, write benchmarks/results/plan_check.*."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--keep", type=Path, help="file of what was measured, written as it goes and read if there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    if find_spec("bitsandbytes") is None:
        left = [case.name for case in chosen if case.name in NEED_BITSANDBYTES]
        print(f"left out, for bitsandbytes is not installed (pip install 'nearstep[quant]'): {', '.join(left) or '-'}")
        chosen = [case for case in chosen if case.name not in left]
    with tempfile.TemporaryDirectory() as place:
        rows = check_all(chosen, Path(place), options.keep)
    print(page(rows))
    write_results(options.output, "plan_check", {"cases": rows}, page(rows), machine())


def check_all(chosen: Sequence[Case], folder: Path, keep: Path | None = None) -> list[dict[str, Any]]:
    """Measure the configurations that `keep` does not hold, then plan all of them."""
    kept: dict[str, Any] = json.loads(keep.read_text()) if keep is not None and keep.is_file() else {}
    families = sorted({case.family for case in chosen})
    in_processes(1, lambda: make_folders(families, folder), folder)
    if MACHINE not in kept:
        in_processes(1, lambda: measure_machine(folder), folder)
        kept[MACHINE] = json.loads((folder / "machine.json").read_text())
    for case in chosen:
        if case.name not in kept:
            kept[case.name] = in_processes(case.processes, partial(measure, case, folder), folder)
            print(case.name, json.dumps(kept[case.name]), flush=True)
        if keep is not None:
            keep.write_text(json.dumps(kept, indent=1))
    (folder / "machine.json").write_text(json.dumps(kept[MACHINE]))
    (planned,) = in_processes(1, lambda: {case.name: predict(case, folder) for case in chosen}, folder)
    return [check(case, kept[case.name], planned[case.name]) for case in chosen]


if __name__ == "__main__":
    main()
