"""How a model folder is handed to lm-evaluation-harness: by its own program, in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.intervals import Z_95
from nearstep.common.model_places import model_place
from nearstep.common.telling import tell
from nearstep.config.evaluation import EvalConfig
from nearstep.evaluation.metrics.figures import Figure
from nearstep.models.adapter_folders import holds_adapters, read_adapters

LAST_LINES = 15  # of what it said, where it fails


def run_lm_eval(config: EvalConfig) -> dict[str, Figure]:
    """The figures of each task, by lm_eval/TASK/METRIC, with the intervals of its own standard errors.

    Raises ConfigError where it is not installed, ModelError where it fails.
    """
    assert config.model is not None
    python = config.lm_eval_python or sys.executable
    _require_lm_eval(python, own=config.lm_eval_python is None)
    with tempfile.TemporaryDirectory() as folder:
        words = [python, "-m", "lm_eval", *lm_eval_words(config, Path(folder))]
        tell(f"lm_eval runs {', '.join(config.lm_eval)} …")
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        written = sorted(Path(folder).rglob("results*.json"))
        if done.returncode != 0 or not written:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
            raise ModelError(f"lm_eval ended with code {done.returncode} and {len(written)} results. It said:\n{said}")
        found: dict[str, Any] = json.loads(written[-1].read_text(encoding="utf-8"))
    return figures_of(found)


def figures_of(found: Mapping[str, Any]) -> dict[str, Figure]:
    """What a results file of lm_eval 0.4 says: `acc,none` is a metric under a filter, `acc_stderr,none` its error."""
    figures = {}
    for task, numbers in found["results"].items():
        count = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in numbers.items():
            metric, _, rule = key.partition(",")
            if metric.endswith("_stderr") or not rule or not isinstance(value, int | float):
                continue
            name = f"lm_eval/{task}/{metric}" + ("" if rule == "none" else f"/{rule}")
            error = numbers.get(f"{metric}_stderr,{rule}")
            half = Z_95 * error if isinstance(error, int | float) else None
            around = (None, None, None) if half is None else (value - half, value + half, "normal")
            figures[name] = Figure(float(value), count, count, *around)
    return figures


def lm_eval_words(config: EvalConfig, folder: Path) -> list[str]:
    """The command line after `python -m lm_eval`; adapters go with the model that they belong to."""
    assert config.model is not None
    place = model_place(config.model)
    arguments = {"pretrained": place, "dtype": config.dtype}
    if holds_adapters(place):
        base = model_place(config.base_model) if config.base_model and config.model_path else None
        arguments = {"pretrained": read_adapters(place, "model", base=base).base, "peft": place, "dtype": config.dtype}
    if config.trust.runs_code_of(place):
        arguments["trust_remote_code"] = "True"
    words = ["--model", "hf", "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    words += ["--tasks", ",".join(config.lm_eval), "--batch_size", str(config.batch_size)]
    words += ["--seed", str(config.seed), "--output_path", str(folder)]
    words += ["--device", "cpu"] if config.use_cpu else []
    words += ["--limit", str(config.max_samples)] if config.max_samples is not None else []
    words += ["--include_path", config.lm_eval_include] if config.lm_eval_include is not None else []
    return words


def _require_lm_eval(python: str, *, own: bool) -> None:
    """Raise ConfigError unless that Python has lm_eval."""
    try:
        found = subprocess.run(
            [python, "-c", "import importlib.util as u; raise SystemExit(u.find_spec('lm_eval') is None)"],
            capture_output=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"lm_eval_python = {python} cannot be started: {error}") from error
    if found.returncode != 0:
        where = "here: pip install nearstep[eval]" if own else f"in {python}: {python} -m pip install lm_eval"
        raise ConfigError(
            f"lm_eval is not installed {where}. It may stand in an environment of its own, whose Python "
            "lm_eval_python names"
        )
