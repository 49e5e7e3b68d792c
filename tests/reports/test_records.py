"""Files of a run hold strict JSON, survive a crash in the middle of a line, and can be continued."""

import doctest
import resource
from contextlib import closing
from math import inf, nan

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.reports import records
from nearstep.reports.records import (
    JsonLines,
    metrics_record,
    rollout_records,
    sample_records,
    set_aside,
)
from nearstep.training.evaluated import Sample
from nearstep.types import Prompts, Rollout, Scores
from tests.reports.helpers import read_jsonl


def two_rows() -> tuple[Prompts, Rollout, Scores]:
    """Prompt [5, 6, 4] answered [7, 2] and finished, prompt [8] answered [9] and cut off."""
    prompts = Prompts(ids=[[5, 6, 4], [8]], inputs=["five six four", "eight"], columns={}, episodes=[40, 41])
    rollout = Rollout(
        tokens=torch.tensor([5, 6, 4, 7, 2, 8, 9]),
        is_action=torch.tensor([False, False, False, True, True, False, True]),
        row_lengths=torch.tensor([5, 2]),
        logprobs=torch.zeros(3),
        finished=torch.tensor([True, False]),
        policy_version=torch.zeros(2, dtype=torch.long),
    )
    parts = {"helpful": torch.tensor([1.0, nan]), "short": torch.tensor([0.5, 0.25])}
    return prompts, rollout, Scores(total=torch.tensor([1.5, 0.25]), parts=parts)


def test_metrics_record_is_strict_json_with_nan_inside(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write([metrics_record(update=3, episode=24, epoch=0.5, numbers={"lr": 0.1, "a": nan, "b": -inf, "steps": 4})])
    file.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {
            "update": 3,
            "episode": 24,
            "epoch": 0.5,
            "lr": 0.1,
            "a": None,
            "b": None,
            "steps": 4,
            "not_finite": {"a": "nan", "b": "-inf"},
        }
    ]


def test_place_of_a_record_is_the_reporters_own():
    record = metrics_record(update=3, episode=24, epoch=0.5, numbers={"episode": 7, "lr": 0.1})
    assert record == {"update": 3, "episode": 24, "epoch": 0.5, "lr": 0.1}


def test_a_record_that_is_not_strict_json_is_refused(tmp_path):
    file = JsonLines(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        file.write([{"update": 1}, {"update": 1, "value": nan}])
    file.close()
    assert not (tmp_path / "x.jsonl").exists()  # and nothing empty is left


def test_rollout_records_by_hand():
    prompts, rollout, scores = two_rows()
    lines = rollout_records(
        update=5,
        prompts=prompts,
        decode=lambda ids: " ".join(map(str, ids)),
        judged=lambda ids, finished: f"{ids}, {finished}",
        rollout=rollout,
        scores=scores,
        final_scores=torch.tensor([1.5, -1.0]),
        numbers=[{"kl": 0.1}, {"kl": 0.2}],
    )
    assert lines == [
        {
            "update": 5,
            "episode": 40,
            "prompt": "5 6 4",
            "completion": "[7, 2], True",
            "scores": {"helpful": 1.0, "short": 0.5},
            "total_score": 1.5,
            "final_score": 1.5,
            "finished": True,
            "response_length": 2,
            "numbers": {"kl": 0.1},
            "extras": {},
            "input": prompts.inputs[0],
            "columns": {},
            "prompt_ids": [5, 6, 4],
            "completion_ids": [7, 2],
        },
        {
            "update": 5,
            "episode": 41,
            "prompt": "8",
            "completion": "[9], False",
            "scores": {"helpful": None, "short": 0.25},
            "total_score": 0.25,
            "final_score": -1.0,
            "finished": False,
            "response_length": 1,
            "numbers": {"kl": 0.2},
            "extras": {},
            "input": prompts.inputs[1],
            "columns": {},
            "prompt_ids": [8],
            "completion_ids": [9],
        },
    ]


def test_extra_columns_of_rewards_are_recorded_whatever_they_hold(tmp_path):
    prompts, rollout, scores = two_rows()
    scores = Scores(scores.total, scores.parts, extras={"answer": ["4", None], "found": [nan, torch.device("cpu")]})
    lines = rollout_records(
        update=1, prompts=prompts, decode=str, judged=lambda ids, _: str(ids), rollout=rollout, scores=scores,
        final_scores=scores.total, numbers=[{}, {}],
    )  # fmt: skip
    file = JsonLines(tmp_path / "rollouts.jsonl")
    file.write(lines)
    file.close()
    extras = [line["extras"] for line in read_jsonl(tmp_path / "rollouts.jsonl")]
    assert extras == [{"answer": "4", "found": None}, {"answer": None, "found": "cpu"}]


def test_text_of_any_kind_survives(tmp_path):
    text = 'line\nbreak, quote ", line separator \u2028, 漢字, lone surrogate \ud800, bell \x07, null \x00'
    file = JsonLines(tmp_path / "samples.jsonl")
    file.write(sample_records(2, [Sample("q", text, nan)]))
    file.close()
    assert read_jsonl(tmp_path / "samples.jsonl") == [
        {"update": 2, "query": "q", "response": text, "score": None, "start_response": None, "start_score": None}
    ]


def test_every_update_can_be_read_while_the_run_goes_on(tmp_path):
    file = JsonLines(tmp_path / "made" / "on" / "the way" / "x.jsonl")
    file.write([{"update": 1}])
    assert read_jsonl(file.path) == [{"update": 1}]
    file.write([{"update": 2}])
    assert read_jsonl(file.path) == [{"update": 1}, {"update": 2}]
    file.close()
    file.close()


def test_what_the_disk_does_not_take_as_a_whole_is_not_there_in_part(tmp_path):
    with closing(JsonLines(tmp_path / "a.jsonl")) as file:
        file.write([{"a": 1}])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            with pytest.raises(TrainingError, match=r"a.jsonl cannot be written: .*File too large"):
                file.write([{"b": "x" * 100}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        file.write([{"c": 3}])
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"c": 3}]


def test_an_existing_file_is_continued(tmp_path):
    for update in (1, 2):
        file = JsonLines(tmp_path / "x.jsonl")
        file.write([{"update": update}])
        file.close()
    assert read_jsonl(tmp_path / "x.jsonl") == [{"update": 1}, {"update": 2}]


@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 16])
@pytest.mark.parametrize("torn", ["", '{"upda', '{"update": 2, "text": "é'])
def test_a_torn_last_line_is_cut_off(tmp_path, monkeypatch, block_bytes, torn):
    monkeypatch.setattr(records, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "x.jsonl"
    path.write_text('{"update": 1}\n' + torn, encoding="utf-8")
    file = JsonLines(path)
    file.write([{"update": 2}])
    file.close()
    assert read_jsonl(path) == [{"update": 1}, {"update": 2}]


def test_a_file_of_one_torn_line_is_no_record(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"upda', encoding="utf-8")
    JsonLines(path).close()
    assert not path.exists()


def test_examples_in_docstrings():
    assert doctest.testmod(records).failed == 0


def test_records_of_an_earlier_run_are_kept_under_another_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert set_aside(path) is None
    for run in range(3):
        path.write_text(f"{run}\n")
        assert set_aside(path) == tmp_path / f"metrics.{run + 1}.jsonl"
    assert not path.exists()
    assert (tmp_path / "metrics.1.jsonl").read_text() == "0\n"
