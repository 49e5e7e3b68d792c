"""`nearstep eval` of a run says where the run was trained with another length."""

import pytest

from nearstep.config.evaluation import EvalConfig
from nearstep.evaluation.run_eval import _compare_with_the_run


@pytest.mark.parametrize(("model", "length", "told"), [
    ("", 256, True), ("@3", 256, True), ("/checkpoint-3", 256, True), ("", 48, False), ("/checkpoint-3", 48, False),
])  # fmt: skip
def test_another_length_is_told(model, length, told, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "run.yaml").write_text("response_length: 48\n")
    _compare_with_the_run(EvalConfig(model_path=f"{run}{model}", response_length=length))
    said = capsys.readouterr().err
    assert ("was trained with response_length = 48; here completions have up to 256 tokens" in said) == told


def test_other_models_have_none(tmp_path, capsys):
    _compare_with_the_run(EvalConfig(model_path="org/name"))
    _compare_with_the_run(EvalConfig(model_path=str(tmp_path)))
    assert capsys.readouterr().err == ""
