"""What was run where: which tests run which backend, for which roles, from which launcher, on which device. The page
docs/what_ran_where.md is made of it: python -m tests.what_ran --write."""

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "what_ran_where.md"
ALL = "policy, critic, reference"
DEFAULT, SLOW = "make test", "make test-slow"
FORKED = "by hand (RANK, WORLD_SIZE, MASTER_ADDR)"


@dataclass(frozen=True)
class Run:
    """One line of the page: what a test runs."""

    backend: str
    roles: str
    families: str
    test: str  # file::function
    lane: str  # the command that runs it
    processes: str = "2"
    launcher: str = FORKED
    device: str = "cpu"

    def is_slow(self) -> bool:
        """Whether the test is kept out of the default run."""
        return self.lane != DEFAULT


SHARDED, TENSOR = "tests/scale/test_sharded.py", "tests/scale/test_tensor_parallel.py"
SEQUENCES, TWO = "tests/scale/test_sequences.py", "tests/scale/test_two_processes.py"
ZERO, VLLM = "tests/scale/deepspeed/test_deepspeed.py", "tests/engines/test_real.py"
RUNS = (
    Run("one process", "policy, critic, reward model", "a dozen decoders",
        "tests/families/test_families.py::test_a_dozen_families_in_every_role", DEFAULT, "1", "none"),
    Run("one process", "policy, critic, reward model", "every decoder of transformers ([families](families.md))",
        "tests/families/test_families.py::test_every_family_as_people_bring_it", "make test-families", "1", "none"),
    Run("whole on each (data parallel)", ALL, "GPT-2", f"{TWO}::test_weights_are_the_same_d12_r06", DEFAULT),
    Run("whole on each, saved on 2 and gone on with on 1", ALL, "GPT-2",
        f"{TWO}::test_a_run_goes_on_with_another_number_of_processes_r05", DEFAULT),
    Run("whole on each; four roles on one base", f"{ALL}, reward model", "Llama, LoRA",
        "tests/scale/test_one_base.py::test_two_processes_learn_what_one_does", SLOW),
    Run("whole on each", ALL, "Llama", "tests/scale/test_accelerate.py::test_a_launch_of_two_processes_trains", SLOW,
        launcher="accelerate launch (`multi_cpu.yaml`)"),
    Run("whole on each, a rank killed or stopped", ALL, "Llama",
        "tests/scale/test_lost_ranks.py::test_a_lost_rank_ends_the_run_r15", SLOW, launcher="torchrun; by hand"),
    Run("whole on each, a rank fails", ALL, "Llama",
        "tests/cli/test_launcher.py::test_an_exception_on_one_rank_ends_both_with_its_cause_r16", SLOW,
        launcher="torchrun"),
    Run("FSDP2 (`dp_shard 2`), a head on the policy's trunk", ALL, "GPT-2",
        f"{TWO}::test_networks_in_pieces_have_the_weights_and_metrics_of_one_process_r04", DEFAULT),
    Run("FSDP2 (`dp_shard 2`)", ALL, "GPT-2 in float64",
        f"{SHARDED}::test_every_kind_of_run_on_two_processes_in_float64", SLOW),
    Run("FSDP2 (`dp_shard 2`, `4`), HSDP (2 × 2)", ALL, "GPT-2, Llama, Qwen3-MoE, Mamba, LoRA, bfloat16",
        f"{SHARDED}::test_a_variety", SLOW, "2; 4"),
    Run("FSDP2, HSDP: saved in pieces, gone on with on 1", ALL, "Llama, LoRA",
        f"{SHARDED}::test_what_is_saved_opens_by_itself_and_goes_on_on_one_process", SLOW, "2; 4"),
    Run("FSDP2", ALL, "Llama", "tests/scale/test_accelerate.py::test_a_launch_of_two_processes_trains", SLOW,
        launcher="accelerate launch (`fsdp2.yaml`)"),
    Run("tensor parallel (`tp_size 2`, `4`), with FSDP2 (2 × 2), in 2 copies", ALL,
        "Llama, Qwen3, Gemma3, Phi3, LoRA, bfloat16", f"{TENSOR}::test_a_variety", SLOW, "2; 4"),
    Run("tensor and expert parallel (`tp_size 2`, `ep_size 2`)", ALL, "Qwen3-MoE", f"{TENSOR}::test_a_variety", SLOW,
        "2; 4"),
    Run("tensor parallel: saved on 2, gone on with on 1", ALL, "Llama, LoRA",
        f"{TENSOR}::test_what_is_saved_goes_on_on_one_process_and_opens_by_itself", SLOW, "2; 4"),
    Run("tensor parallel: rewards asked once a row", "reward function", "Llama",
        f"{TENSOR}::test_rewards_are_asked_once_for_each_row", SLOW),
    Run("sequence parallel (`sp_size 2`, `4`), with FSDP2, in 2 copies", ALL,
        "GPT-2, Llama, Qwen3, GPT-NeoX, Phi, LoRA", f"{SEQUENCES}::test_weights_are_those_of_one_process", SLOW,
        "2; 4"),
    Run("sequence parallel: saved on 2, gone on with on 1 and back", ALL, "Llama",
        f"{SEQUENCES}::test_saved_on_two_goes_on_on_one_and_the_other_way", SLOW),
    Run("DeepSpeed ZeRO-2, ZeRO-3", ALL, "Llama, GPT-2, LoRA, bfloat16",
        f"{ZERO}::test_weights_after_three_updates_are_those_of_one_process", "make deepspeed", "2; 4"),
    Run("DeepSpeed ZeRO-2, ZeRO-3: saved on 2, gone on with on 1 and 4", ALL, "Llama",
        f"{ZERO}::test_a_checkpoint_goes_on_on_one_process_and_on_four", "make deepspeed", "2; 4"),
    Run("engine vLLM in the process", "policy (samples)", "Llama", f"{VLLM}::test_all_laws_hold_in_process",
        "make engines", "1", "none"),
    Run("engine vLLM as a server", "policy (samples)", "Llama", f"{VLLM}::test_all_laws_hold_for_a_server",
        "make engines", "1", "none"),
    Run("engine vLLM as a server that processes share", "policy (samples)", "Llama",
        f"{VLLM}::test_two_processes_share_a_server", "make engines"),
    Run("Slurm's script, with stand-ins for Slurm's programs", "none: what it would start", "–",
        "tests/examples/test_slurm.py::test_every_machine_starts_its_processes_and_meets_at_the_first", DEFAULT, "–",
        "sbatch"),
)  # fmt: skip
NOT_RUN = (
    ("cuda, one GPU", "one process", "tests that are marked `gpu` are there, and `make gpu-check` runs them"),
    ("cuda, several GPUs (NCCL)", "FSDP2, HSDP, tensor, expert and sequence parallel, ZeRO", "no machine had any"),
    ("cuda", "engine vLLM with sleep mode; `offload_roles`; CUDA graphs", "no machine had any"),
    ("mps (Apple)", "all", "no machine had any"),
    ("xpu (Intel)", "all", "no machine had any"),
    ("npu (Ascend)", "all", "no machine had any"),
    ("cpu, several machines", "all", "processes of one machine speak through its own loopback"),
)


def is_there(test: str) -> bool:
    """Whether the function that a line names stands in its file."""
    return _function(test) is not None


def has_mark(test: str, mark: str) -> bool:
    """Whether a test or its file carries a mark of pytest, as its text says."""
    tree = ast.parse((ROOT / test.partition("::")[0]).read_text(encoding="utf-8"))
    of_file = [node.value for node in tree.body if isinstance(node, ast.Assign)
               and any(isinstance(name, ast.Name) and name.id == "pytestmark" for name in node.targets)]  # fmt: skip
    function = _function(test)
    own = [] if function is None else function.decorator_list
    return any(f"mark.{mark}" in ast.unparse(node) for node in (*of_file, *own))


def _function(test: str) -> ast.FunctionDef | None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def page() -> str:
    """The page."""
    lines = [
        f"| {run.backend} | {run.roles} | {run.families} | {run.launcher} | {run.device} | {run.processes} | "
        f"`{run.test.removeprefix('tests/')}` | `{run.lane}` |"
        for run in RUNS
    ]
    missing = [f"| {device} | {what} | not run here: {why} |" for device, what, why in NOT_RUN]
    return "\n".join([
        "# What was run where",
        "",
        "<!-- written by `python -m tests.what_ran --write` -->",
        "",
        "Every line is a test of this repository, and the command that runs it. Models are tiny, processes are those "
        "of one machine, over gloo: what is shown is that weights, or what is sampled, are those of one process, not "
        "how fast it is. How far weights were apart stands on the page on "
        "[several processes](scaling.md#what-was-run-where).",
        "",
        "| backend | roles | families | launcher | device | processes | test | by |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        "A test that is `make test` runs with every change. `make deepspeed` and `make engines` make an environment of "
        "their own first; without it their tests are skipped, and say what is missing.",
        "",
        "## Not run here",
        "",
        "| device | what | |",
        "|---|---|---|",
        *missing,
        "",
    ])  # fmt: skip


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
