"""Each benchmark with each of its options: arguments, tables, files, with made-up measurements; and for real, tiny."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.drift.play import Moment
from benchmarks.harness import machine as machine_module
from benchmarks.harness.machine import commit, machine, sentence, source_digest

from benchmarks import alignment, critics, ladder, prepare, scaling, stability, vs_trl
from tests.lanes import slow

REPOSITORY = Path(__file__).parents[2]
TRL_ENVIRONMENT = REPOSITORY / "runs" / "trl-env"


def record_of(workload):
    """What a process would have measured."""
    phases = ("generate",) if workload.kind == "rollout" else ("generate", "score", "update")
    spent = {"cpu_seconds": float(workload.rows), "wall_seconds": 2.0, "peak_bytes": 3 * 2**20}
    return {
        "weights_bytes": 2**20,
        "updates": [dict.fromkeys(phases, spent)] * workload.updates,
        "rates": {"matrix_flops": 1e9, "memory_bytes": 1e9},
    }


@pytest.fixture
def processes(monkeypatch):
    """The workloads that were asked for, side by side with who should run them; nothing runs."""
    asked = []

    def run(side, python, workload):
        asked.append((side, python, workload))
        return record_of(workload)

    monkeypatch.setattr(vs_trl, "run_process", run)
    monkeypatch.setattr(scaling, "run_process", run)
    monkeypatch.setattr(vs_trl, "environment", lambda folder: folder / "bin" / "python")
    return asked


def results(folder, name):
    """Both files of some results, which must name what was measured."""
    kept, page = json.loads((folder / f"{name}.json").read_text()), (folder / f"{name}.md").read_text()
    assert kept["machine"]["commit"] == commit()
    assert kept["machine"]["processor"] in page
    assert "commit" in page.splitlines()[-1]
    return kept, page


@pytest.mark.parametrize(("words", "sides", "names"), [
    ([], 2 * (7 + 1) + 3 + 1, ["s: PPO, float32", "s: PPO, float32, alone", "m: PPO, float32, alone"]),
    *map(slow, [
        (["--full"], 2 * 8 * 2, ["m: DPPO top-K TV"]),
        (["--only", "alone"], 2 + 3 + 1, ["s: rollout alone", "m: PPO, float32, alone"]),
        (["--only", "PPO, float32, alone"], 3 + 1, ["m: PPO, float32, alone"]),
        (["--alone"], 8, ["s: rollout alone, alone", "s: PPO, critic on a shared trunk, alone"]),
        (["--model", "tiny", "--rows", "8", "--updates", "2"], 16, ["tiny: DPPO binary TV"]),
        (["--rounds", "2", "--only", "8 samples", "--minutes", "0"], 4, ["s: PPO, 8 samples of 256-token prompts"]),
        (["--rounds", "2", "--only", "top-K"], 4, ["s: DPPO top-K TV"]),
        (["--trl_python", "/its/python", "--only", "top-K"], 2, ["s: DPPO top-K TV"]),
        (["--venv", "/its", "--only", "shared"], 2, ["s: PPO, critic on a shared trunk"]),
    ]),
])  # fmt: skip
def test_vs_trl(words, sides, names, processes, tmp_path, capsys):
    given = [*(["--rounds", "1"] if "--rounds" not in words else []), *words, "--output", str(tmp_path)]
    pytest.importorskip("matplotlib")
    vs_trl.main(given)
    assert len(processes) == sides
    kept, page = results(tmp_path, "vs_trl_cpu_alone" if "--alone" in words else "vs_trl_cpu")
    assert set(names) <= set(kept["workloads"])
    assert all(f"| {name} |" in page for name in names)
    compared = any(line["against"] != "floor" for line in kept["lines"])
    assert (tmp_path / "vs_trl_cpu.png").exists() == compared
    assert "ratio" in capsys.readouterr().out
    pythons = {str(python) for side, python, _ in processes if side == "trl_side"}
    assert (
        pythons <= {"/its/python"}
        if "--trl_python" in words
        else all(python.endswith("bin/python") for python in pythons)
    )


@pytest.mark.slow
def test_vs_trl_alone_makes_no_environment_and_runs_no_other_side(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(vs_trl, "environment", lambda folder: pytest.fail("TRL's environment was asked for"))
    vs_trl.main(["--alone", "--rounds", "1", "--output", str(tmp_path)])
    vs_trl.main(["--only", "float32, alone", "--rounds", "1", "--output", str(tmp_path)])
    assert {side for side, *_ in processes} == {"nearstep_side"}


@pytest.mark.slow
def test_vs_trl_on_a_gpu_is_bfloat16_with_graphs(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(vs_trl, "check_device", lambda parser, device: None)
    vs_trl.main(["--device", "cuda", "--alone", "--rounds", "1", "--output", str(tmp_path)])
    workloads = [workload for *_, workload in processes]
    assert {(work.device, work.dtype, work.model) for work in workloads} == {("cuda", "bfloat16", "l")}
    assert [work.decode_graphs for work in workloads].count(True) == 1
    results(tmp_path, "vs_trl_cuda_alone")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("script", [vs_trl, ladder, scaling])
def test_a_gpu_that_is_not_there_is_missed_in_one_line(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--device", "cuda"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("torch sees no GPU (torch.cuda.is_available() is False)")


@pytest.mark.parametrize(("script", "words", "said"), [
    (vs_trl, ["--only", "nothing"], "no row is named so"), (vs_trl, ["--rows", "12"], "no multiple of 8"),
    (vs_trl, ["--rounds", "0"], "below 1"), (vs_trl, ["--full", "--model", "m"], "leave --model"),
    (ladder, ["--rows", "6", "--samples", "4"], "no multiple of --samples"),
    (ladder, ["--model", "xl"], "invalid choice"),
    (scaling, ["--only", "colour"], "invalid choice"), (scaling, ["--rounds", "0"], "below 1"),
    (stability, ["--regimes", "calm"], "invalid choice"),
    (stability, ["--report_only", "--output", "/none"], "there is no"),
    (critics, ["--updates", "0"], "below 1"), (prepare, ["--rows", "0"], "below 1"), (alignment, [], "--venv"),
])  # fmt: skip
def test_wrong_options_are_told_in_one_line(script, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        script.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--samples", "8", "--rows", "16"], ["--model", "m", "--dtype", "bfloat16"]])
def test_ladder(words, tmp_path, monkeypatch, capsys):
    rungs = {step: ladder.Rung(2.0, 10.0, 1e-7) for step in ladder.LADDER}
    monkeypatch.setattr(ladder, "climb", lambda workload: rungs)
    ladder.main([*words, "--output", str(tmp_path)])
    (file,) = tmp_path.glob("ladder_*.json")
    kept, page = results(tmp_path, file.stem)
    assert list(kept["steps"]) == list(ladder.LADDER)
    assert page.count("| 2.00 | 1.00 |") == len(ladder.LADDER)


@pytest.mark.parametrize("words", [
    slow([]), ["--only", "rows"], slow(["--only", "K", "samples per prompt"]),
    slow(["--only", "vocabulary, adapters", "--model", "tiny"]),
    slow(["--rounds", "2", "--only", "vocabulary"]),
])  # fmt: skip
def test_scaling(words, processes, tmp_path):
    scaling.main([*words, "--output", str(tmp_path)])
    kept, page = results(tmp_path, "scaling_cpu")
    assert len(processes) == len(kept["points"]) * (2 if "--rounds" in words else 1)
    assert page.count("\n\n") == 2  # two tables, and what was measured with


@pytest.mark.parametrize("worst", [1e-6, slow(1e-4)])
def test_alignment(worst, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    modules, gaps = [], [alignment.Gap(1, *[worst] * 8)]

    def record(python, module, *arguments):
        modules.append((module, arguments))
        return {}

    monkeypatch.setattr(alignment, "environment", lambda folder: folder)
    monkeypatch.setattr(alignment, "record", record)
    monkeypatch.setattr(alignment, "follow", lambda *given: gaps)
    monkeypatch.setattr(alignment, "follow_region", lambda *given: [alignment.RegionGap(1, *[worst] * 4)])
    sizes = ["--updates", "3", "--rows", "8", "--width", "16"]
    with pytest.raises(SystemExit) as ended:
        alignment.main(["--venv", "there", *sizes, "--output", str(tmp_path)])
    assert bool(ended.value.code) == (worst > alignment.GOAL)
    assert all(given[-3:] == ("--updates=3", "--rows=8", "--width=16") for _, given in modules)
    kept, _ = results(tmp_path, "alignment")
    assert len(kept["runs"]) == len(modules) == 12


@pytest.mark.slow
def test_stability(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    played = []

    def play(regime, settings, start, seed):
        played.append((regime, seed))
        return [Moment(0.5, 0.1, 0.2, 0.3, 1.0)] * regime.updates

    monkeypatch.setattr(stability, "play", play)
    monkeypatch.setattr(stability, "beginner", lambda *given, seed: None)
    words = ["--quick", "--regimes", "exact", "stale", "--seeds", "4", "5", "--output", str(tmp_path)]
    stability.main(words)
    kept, page = results(tmp_path, "stability")
    assert len(played) == len(kept["runs"]) == 2 * 2 * len(stability.METHODS)
    assert {seed for _, seed in played} == {4, 5}
    assert "A quick run, whose numbers prove nothing" in page
    stability.main([*words, "--report_only"])
    assert results(tmp_path, "stability") == (kept, page)
    assert len(played) == len(kept["runs"])


@pytest.mark.parametrize(
    ("words", "updates"), [slow((["--updates", "3"], 3)), slow((["--quick"], 6)), (["--quick", "--updates", "2"], 2)]
)
def test_critics(words, updates, tmp_path, monkeypatch):
    entry = dict.fromkeys(critics.MEASURES.values(), 0.25)
    seen = []
    monkeypatch.setattr(critics, "beginner", lambda *given: None)
    monkeypatch.setattr(critics, "play", lambda regime, *given: seen.append(regime) or [entry] * regime.updates)
    critics.main([*words, "--seeds", "0", "1", "--output", str(tmp_path)])
    kept, page = results(tmp_path, "critics")
    assert len(seen) == 2 * len(critics.CRITICS)
    assert {regime.updates for regime in seen} == {updates} == {kept["regime"]["updates"]}
    assert page.count("| 0.250 ") == len(critics.CRITICS) * len(critics.MEASURES)


def test_prepare(tmp_path, monkeypatch):
    for name, answer in {"write_posts": None, "train_tokenizer": None, "same_hash": True}.items():
        monkeypatch.setattr(prepare, name, lambda *given, answer=answer: answer)
    monkeypatch.setattr(prepare, "seconds", lambda folder, workers: 4.0 / workers)
    prepare.main(["--rows", "50", "--repeats", "3", "--output", str(tmp_path)])
    kept, page = results(tmp_path, "prepare")
    assert (kept["ratio"], kept["seconds"]) == (2.0, {"1": [4.0] * 3, "2": [2.0] * 3})
    assert "2.00 times faster" in page


@pytest.mark.parametrize("script", [vs_trl, ladder, scaling])
def test_every_script_says_what_was_never_run_on_a_gpu(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    assert machine_module.NEVER_ON_A_GPU in " ".join(capsys.readouterr().out.split())


def test_no_script_writes_results_by_itself():
    """`write_results` alone does, since it names commit and machine; records of processes are no results.

    Nor are the bands that the slow tests compare with, which name commit and machine themselves, nor pages of recipes.
    """
    others = {REPOSITORY / "benchmarks" / name for name in ("reference_curves.py", "recipe_pages.py")}
    for file in set((REPOSITORY / "benchmarks").glob("*.py")) - others:
        writing = [line for line in file.read_text().splitlines() if "write_text(" in line]
        kept = ("options.record", "answer{rank}", "keep.write_text", "machine.json")
        assert all(any(name in line for name in kept) for line in writing), file


def test_facts_of_the_machine(tmp_path, monkeypatch):
    facts = machine(threads=3)
    assert facts["threads"] == 3
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["transformers"] in sentence(facts)
    monkeypatch.setattr(machine_module, "REPOSITORY", tmp_path)
    (tmp_path / "src" / "nearstep").mkdir(parents=True)
    (tmp_path / "src" / "nearstep" / "a.py").write_text("1\n")
    first = source_digest()
    (tmp_path / "src" / "nearstep" / "a.py").write_text("2\n")
    assert source_digest() != first
    assert commit() == "unknown: no git repository here"


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["vs_trl", "--alone", "--model", "tiny", "--rounds", "1"],
    ["vs_trl", "--model", "tiny", "--rounds", "1", "--only", "shared"],
    ["ladder", "--model", "tiny", "--rows", "8", "--samples", "4"],
    ["ladder", "--model", "tiny", "--rows", "8", "--dtype", "bfloat16"],
    ["scaling", "--model", "tiny", "--only", "K"],
    ["stability", "--quick", "--regimes", "exact", "--seeds", "0"],
    ["critics", "--quick", "--seeds", "0"],
    ["prepare", "--rows", "200", "--repeats", "1"],
    ["alignment", "--venv", str(TRL_ENVIRONMENT), "--updates", "1", "--rows", "8", "--width", "16"],
    ["vs_trl", "--model", "tiny", "--rounds", "1", "--only", "DPPO"],
], ids=" ".join)  # fmt: skip
@pytest.mark.timeout(900)
def test_for_real(words, tmp_path):
    if (words[0] == "alignment" or "DPPO" in words) and not (TRL_ENVIRONMENT / "installed").exists():
        pytest.skip(f"TRL's environment is not there: {TRL_ENVIRONMENT}")
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    (file,) = tmp_path.glob("*.json")
    results(tmp_path, file.stem)
