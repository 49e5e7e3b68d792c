"""plan_check and scaling_processes: their tables from made-up measurements, and tiny ones for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.harness.workload import Workload
from benchmarks.plan_check import CASES, in_order, page, rank_correlation
from benchmarks.scaling_processes import BACKENDS, summary
from benchmarks.scaling_processes import page as processes_page

REPOSITORY = Path(__file__).parents[2]
MIB = 2**20


def case(name, planned, measured, seconds, took, processes=1):
    return {
        "name": name, "family": "llama", "planned_bytes": planned * MIB, "measured_bytes": measured * MIB,
        "ratio": planned / measured, "planned_seconds": {"update_in_all": seconds}, "processes": processes,
        "measured_seconds": {"generate": took / 2, "update": took / 2},
    }  # fmt: skip


def test_pairs_are_in_order_where_both_say_the_same_one_is_longer():
    rows = [case("a", 1, 1, 1.0, 2.0), case("b", 1, 1, 2.0, 4.0), case("c", 1, 1, 0.5, 8.0)]
    assert in_order(rows) == (1, 3)
    assert in_order([*rows, case("d", 1, 1, 9.0, 0.1, processes=2)]) == (1, 3)
    assert in_order([case("a", 1, 1, 1.0, 2.0), case("b", 1, 1, 0.5, 2.1)]) == (0, 0)  # too near each other


def test_ranks_of_times_are_compared_whatever_their_distances():
    assert rank_correlation([(1.0, 5.0), (2.0, 6.0), (30.0, 7.0)]) == pytest.approx(1)
    assert rank_correlation([(1.0, 7.0), (2.0, 6.0), (30.0, 5.0)]) == pytest.approx(-1)
    # Two ties and one pair the wrong way: ranks 0.5, 0.5, 2 and 0, 2, 1.
    assert rank_correlation([(1.0, 1.0), (1.0, 9.0), (2.0, 3.0)]) == pytest.approx(0)


def test_the_page_says_which_peaks_are_too_far():
    text = page([case("near", 110, 100, 1, 1), case("far", 120, 100, 1, 1)])
    assert "| near | llama | 110 | 100 | 1.10 | yes |" in text
    assert "| far | llama | 120 | 100 | 1.20 | NO |" in text
    assert "1 of 2 peaks" in text


def test_there_are_twelve_configurations_and_more_of_several_families_and_layouts():
    assert len(CASES) >= 12
    assert len({each.family for each in CASES}) >= 5
    assert len({each.name for each in CASES}) == len(CASES)
    assert {str(each.settings.get("dp_shard")) for each in CASES if each.processes == 2} == {"None", "2"}


def process(seconds, held):
    update = {"update": {"wall_seconds": seconds}}
    parts = {"weights": held, "gradients": 0, "moments": 0}
    return {"updates": [{"update": {"wall_seconds": 99.0}}, update], "held": parts, "sent": {"allreduce_": 5 * MIB}}


def test_the_slowest_process_counts_and_the_first_update_does_not():
    alone = summary("ddp", 1, [process(10.0, 100 * MIB)])
    two = summary("fsdp2", 2, [process(5.0, 50 * MIB), process(6.0, 49 * MIB)])
    assert (two["seconds"], two["held_bytes"], two["sent_bytes"]) == (6.0, 50 * MIB, 5 * MIB)
    text = processes_page([alone, two], Workload("", "ppo"), disturbed=True)
    assert "| fsdp2 | 2 | 6.0 | 1.67 | 50 | 0.50 | 5 |" in text
    assert "Other programs ran" in text


def test_a_backend_that_cannot_have_so_many_processes_has_no_row():
    found = {each.name: [count for count in (1, 2, 4) if each.settings(count) is not None] for each in BACKENDS}
    without = {
        name: counts for name, counts in found.items() if not name.startswith("zero")
    }  # DeepSpeed may be missing
    assert without == {"ddp": [1, 2, 4], "apart": [2, 4], "fsdp2": [2, 4], "hsdp": [4], "tp": [2, 4], "ulysses": [2, 4]}


@pytest.mark.slow
def test_processes_for_real(tmp_path):
    words = ["--model", "tiny", "--rows", "8", "--processes", "1", "2", "--output", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling_processes", *words], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = {
        (row["backend"], row["processes"]): row
        for row in json.loads((tmp_path / "scaling_processes.json").read_text())["rows"]
    }
    alone, whole, pieces = rows["ddp", 1], rows["ddp", 2], rows["fsdp2", 2]
    assert alone["sent_bytes"] == 0
    assert whole["held_bytes"] == alone["held_bytes"]
    assert 0.5 <= pieces["held_bytes"] / alone["held_bytes"] <= 0.6
    # Four epochs, one step each: gradients in float32 of all that trains, which is a quarter of what is held.
    gradients = alone["by_process"][0]["held"]["gradients"]
    assert whole["by_process"][0]["sent"]["allreduce_"] >= 4 * gradients
    assert pieces["by_process"][0]["sent"]["_reduce_scatter_base_"] > 0


@pytest.mark.slow
def test_a_plan_against_a_run_for_real(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan_check", "--only", "shared trunk", "--output", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((tmp_path / "plan_check.json").read_text())["cases"]
    assert 0.7 < row["ratio"] < 1.3
