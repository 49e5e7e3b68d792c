"""A run's records as frames."""

import json
from math import inf, isnan

import pytest

import nearstep
from nearstep import DataError

TOKENS = {
    "update": 2, "episode": 9, "prompt": "a", "score": None, "finished": True, "tokens": ["x", "y"],
    "token_ids": [5, 2],
    "logprob": [-0.5, None], "ref_logprob": None,
}  # fmt: skip
PROFILE = {
    "update": 2,
    "value_deciles": None,
    "along_row": [{"position": 0, "value": None, "count": 3}, {"position": 5, "value": None, "count": 1}],
    "masked": [{"sign": "+", "position": 0, "share": 0.5, "count": 2}],
}


@pytest.fixture
def run(tmp_path):
    lines = {
        "metrics": [
            {"update": 1, "lr": 0.5, "loss/policy_avg": None, "not_finite": {"loss/policy_avg": "-inf"}},
            {"update": 1, "eval/objective/scores": 2.0},
            {"update": 2, "lr": 0.25, "loss/policy_avg": 1.0},
        ],
        "rollouts": [
            {"update": 1, "scores": {"good": 1.0}, "numbers": {"kl": None}, "extras": {}, "columns": {"a": "q"},
             "prompt_ids": [1, 2]},
        ],
        "tokens": [TOKENS],
        "profiles": [PROFILE],
    }  # fmt: skip
    for name, records in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "run.yaml").write_text("kl_coef: 0.2\n")
    return nearstep.read_run(tmp_path)


def test_metrics_are_as_they_were(run):
    assert run.metrics["update"].tolist() == [1, 2]
    assert run.metrics["loss/policy_avg"].tolist() == [-inf, 1.0]
    assert "not_finite" not in run.metrics
    assert run.evaluations.to_dict("records") == [{"update": 1, "eval/objective/scores": 2.0}]
    assert run.metrics is run.metrics  # read once


def test_episodes_have_a_column_for_each_part(run):
    (episode,) = run.rollouts.to_dict("records")
    assert isnan(episode.pop("kl"))
    assert episode == {"update": 1, "reward/good": 1.0, "column/a": "q", "prompt_ids": [1, 2]}


def test_a_line_for_each_token(run):
    assert run.tokens[["episode", "place", "token", "token_ids"]].values.tolist() == [[9, 0, "x", 5], [9, 1, "y", 2]]
    assert run.tokens["logprob"].tolist()[0] == -0.5
    assert run.tokens[["ref_logprob", "score"]].isna().all().all()


def test_profiles_and_what_a_run_does_not_have(run):
    assert run.along_row[["update", "position", "count"]].values.tolist() == [[2, 0, 3], [2, 5, 1]]
    assert run.masked["share"].tolist() == [0.5]
    for frame in (run.value_deciles, run.samples, run.alerts, run.eval_rollouts):
        assert frame.empty
    assert run.settings == {"kl_coef": 0.2}
    assert run.changed["kl_coef"]["default"] == 0.05
    assert run.info == {}
    with pytest.raises(AttributeError):
        run.folder = None


def test_what_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no folder of a run"):
        nearstep.read_run(tmp_path)
