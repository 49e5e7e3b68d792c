"""The check on a GPU, as far as it can be shown without one: limits, verdicts, and that each step's tests are there."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_check import MINUTES, Step, gpu_tests, main, read, run_step, steps

from benchmarks import gpu_check

REPOSITORY = Path(__file__).parents[2]
PYTEST = gpu_tests("kernels", "file.py", limit_seconds=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so_in_a_line_and_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "run_step", lambda step: pytest.fail("a step ran"))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no GPU")


def test_the_limits_add_up_to_the_minutes(tmp_path):
    assert sum(step.limit_seconds for step in steps(tmp_path)) <= 60 * MINUTES


def test_every_step_runs_something_that_is_there(tmp_path):
    named = [word for step in steps(tmp_path) for word in step.words if word.startswith("tests/")]
    assert len(named) == 3
    for file in named:
        assert "@pytest.mark.gpu" in (REPOSITORY / file).read_text(), file


@pytest.mark.parametrize(("there", "words"), [(True, ("--trl_python", sys.executable)), (False, ("--alone",))])
def test_trl_runs_where_it_is_installed(there, words, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "_there", lambda package: there)
    assert " ".join(words) in " ".join(steps(tmp_path)[-1].words)


@pytest.mark.parametrize(("code", "output", "verdict", "told"), [
    (0, "...\n18 passed, 3 deselected in 2.00s\n", "passed", "18 passed, 3 deselected in 2.00s"),
    (1, "F\n1 failed, 17 passed in 2.00s\n", "failed", "1 failed, 17 passed in 2.00s"),
    (2, "E   ImportError: no such thing\n1 error in 0.1s\n", "failed", "1 error in 0.1s"),
    (0, "s\nSKIPPED [2] file.py:3: needs a GPU\n2 skipped in 0.1s\n", "skipped", "2 skipped in 0.1s"),
    (-9, "", "failed", "no output"),
])  # fmt: skip
def test_what_pytest_says(code, output, verdict, told):
    result = read(PYTEST, code, output, 2.0)
    assert (result.verdict, result.told) == (verdict, told)
    assert result.skips == (("[2] file.py:3: needs a GPU",) if verdict == "skipped" else ())


def test_a_step_out_of_time_is_ended_with_what_it_started(tmp_path):
    code = "import subprocess, sys; print('began', flush=True); subprocess.run(['sleep', '600'])"
    began = time.monotonic()
    result = run_step(Step("slow", ("-c", code), (), 5.0))
    assert (result.verdict, result.output.strip()) == ("out of time", "began")
    assert time.monotonic() - began < 300  # the child, which holds the pipe, would be six hundred


def test_a_step_that_lacks_a_package_is_skipped_and_says_which():
    result = run_step(Step("speed", ("-c", "raise SystemExit(3)"), ("torch", "trl"), 5.0), lambda name: name == "torch")
    assert (result.verdict, result.told) == ("skipped", "not installed here: trl")
    assert run_step(Step("speed", ("-c", "raise SystemExit(3)"), (), 60.0)).told == "exit code 3"


def test_all_steps_run_and_are_written_whatever_one_of_them_does(tmp_path, monkeypatch, capsys):
    planned = [Step("breaks", ("-c", "1 / 0"), (), 60.0), Step("holds", ("-c", "pass"), (), 60.0)]
    monkeypatch.setattr(gpu_check, "steps", lambda output: planned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda threads: {"gpu": "made up"})
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path)])
    assert ended.value.code == 1
    kept = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["verdict"] for step in kept["steps"]] == ["failed", "passed"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert "ZeroDivisionError" in page
    assert "gpu made up" in page


def test_a_makefile_target_takes_a_python_as_it_is():
    done = subprocess.run(
        ["make", "--dry-run", "gpu-check", "PYTHON=/some/python"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "/some/python -m benchmarks.gpu_check" in done.stdout
    assert "pip" not in done.stdout
