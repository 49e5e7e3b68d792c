"""Several runs over each other: what belongs together, means and spreads by hand, files that can be read."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from nearstep.cli.main import main
from nearstep.common.errors import DataError
from nearstep.reports.comparison.curves import compare, higher_is_better
from nearstep.reports.comparison.show import as_json, print_tables


def make(folder, scores, *, every=1, kl=None, **settings):
    """A run of 8 episodes an update that logged these scores."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"update": every * place, "episode": 8 * every * place, "objective/scores": score}
        | ({} if kl is None else {"objective/kl": kl})
        for place, score in enumerate(scores, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())
    if settings:
        (folder / "run.yaml").write_text(f"num_ppo_epochs: 4\noutput_dir: {folder}\n{text}")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Two seeds of which one is longer, and a run with another setting that is logged every second update."""
    return [
        make(tmp_path / "a", [1, 2, 3, 9], seed=1),
        make(tmp_path / "b", [3, 4, 1], seed=2, log_rollouts=False),
        make(tmp_path / "c", [5, 5], seed=1, kl_coef=0.2, every=2, kl=0.5),
    ]


def test_seeds_are_one_group_with_mean_and_spread(runs):
    found = compare(runs, axis="update")
    assert [group.label for group in found.groups] == ["a, b (2 seeds)", "c"]
    assert found.groups[0].seeds == [1, 2]
    spread = found.spread("objective/scores", 0)
    assert spread.x.tolist() == [1, 2, 3]  # where both are
    assert spread.mean.tolist() == [2, 3, 2]
    np.testing.assert_allclose(spread.deviation, [2**0.5] * 3)
    last, best = found.last("objective/scores", 0), found.best("objective/scores", 0)
    assert (last.mean, last.of_runs, last.x) == (2, (3, 1), 3)
    assert (best.mean, best.of_runs) == (6.5, (9, 4))  # each run's own best, wherever it was
    assert found.last("objective/scores", 1).deviation is None
    assert found.curves["objective/scores"][0][0].x.tolist() == [1, 2, 3, 4]
    assert found.last("objective/kl", 0) is None  # they have none
    assert found.settings == {"log_rollouts": [[True, False], [True]], "kl_coef": [[0.05], [0.2]]}


def test_places_between_logged_updates_are_on_a_straight_line(tmp_path):
    places = [make(tmp_path / "a", [0, 2, 4, 6], seed=1), make(tmp_path / "b", [1, 5], every=2, seed=2)]
    spread = compare(places).spread("objective/scores", 0)
    assert spread.x.tolist() == [16, 24, 32]
    assert spread.mean.tolist() == [(2 + 1) / 2, (4 + 3) / 2, (6 + 5) / 2]


def test_runs_that_are_never_at_one_place_have_no_mean(tmp_path):
    places = [make(tmp_path / "a", [1], seed=1), make(tmp_path / "b", [2], every=3, seed=2)]
    found = compare(places)
    assert found.spread("objective/scores", 0) is None
    assert found.last("objective/scores", 0) is None
    assert found.best("objective/scores", 0).of_runs == (1, 2)
    assert main(["compare", *places, "--output", str(tmp_path / "x.png")]) == 0


def test_equal_names_are_told_apart_and_a_folder_counts_once(tmp_path):
    places = [make(tmp_path / part / "ppo", [1], seed=seed) for seed, part in enumerate("xy")]
    places.append(make(tmp_path / "z", [1], seed=3, run_name="ppo"))
    (group,) = compare([*places, places[0] + "/"]).groups
    assert group.names == ("x/ppo", "y/ppo", "z")
    assert len(group.runs) == 3


def test_runs_without_settings_are_not_taken_for_one(tmp_path):
    found = compare([make(tmp_path / name, [1]) for name in "ab"])
    assert len(found.groups) == 2
    assert found.settings == {}


def test_metrics_by_pattern_all_of_them_or_none_that_is_there(runs):
    assert compare(runs, ["objective/*"]).metrics == ["objective/scores", "objective/kl"]
    assert compare(runs, ["all"]).metrics == ["objective/scores", "objective/kl"]
    with pytest.raises(DataError, match=r"no run has 'objective/score'; did you mean objective/scores\?"):
        compare(runs, ["objective/score"])


def test_a_reward_model_has_steps_and_metrics_of_its_own(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 0.7}\n{"step": 20, "loss": 0.5, "accuracy": null}\n')
    found = compare([str(tmp_path)])
    assert found.metrics == ["loss"]
    assert (found.last("loss", 0).x, found.best("loss", 0).mean) == (20, 0.5)


def test_what_better_means():
    assert [higher_is_better(name) for name in ("eval/objective/scores", "reward/rm", "loss/value_avg", "lr")] == [
        True, True, False, None,
    ]  # fmt: skip
    assert higher_is_better("reward/rm_std") is None


def test_what_is_no_run_and_what_has_nothing_yet(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 1
    assert "no folder of a run" in capsys.readouterr().err
    (tmp_path / "empty" / "run.yaml").write_text("seed: 1\n")
    assert main(["compare", str(tmp_path / "empty")]) == 1
    assert "has no metrics yet" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert main(["compare", str(tmp_path), "--output", "x.docx"]) == 2
    assert "must end with .html, .png, .svg" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_and_json(runs, tmp_path, capsys):
    attack = "</script><script>window.attacked = 1</script><img src=x onerror=alert(1)>"
    runs.append(make(tmp_path / "d", [2, 3], seed=4, run_name=attack, kl_coef=0.9))
    outputs = [tmp_path / f"figure{ending}" for ending in (".html", ".png", ".svg")]
    assert main(["compare", *runs, "--json", "--output", *map(str, outputs)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"][0]["runs"][1] == {"name": "b", "folder": runs[1], "seed": 2, "updates": 3}
    assert found["metrics"]["objective/scores"][0]["last"]["of_runs"] == [3, 1]
    html, png, svg = (path.read_bytes() for path in outputs)
    body, *scripts = html.split(b"<script>")
    assert len(scripts) == 2  # bokeh's and the drawing, of which neither is ended by a name
    assert b"<img" not in body
    assert b"http-equiv" in html
    assert png.startswith(b"\x89PNG")
    assert svg.count(b"objective/scores") >= 1
    assert not list(tmp_path.glob(".figure*"))


def test_tables_are_whole_at_any_width(runs):
    console = Console(width=60, highlight=False, file=io.StringIO())
    print_tables(compare(runs), console)
    text = console.file.getvalue()
    assert "2 ± 1.4" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert as_json(compare(runs))["axis"] == "episode"
