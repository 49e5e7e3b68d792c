"""Two gloo processes give the numbers of one: weights, metrics, and every episode on record."""

import json

import pytest
import torch

from tests import two_ranks
from tests.scale import two_processes

WALL_CLOCK = ("eps", "seconds", "tokens_per_second")
ALWAYS = [".", "one_trunk", "adapting"]
MORE = ["groups", "several", "critic", "refilled", "replaced", "auxiliary"]
PLACES = [*ALWAYS, *MORE]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("processes")
    one, two = base / "one", base / "two"
    for folder in (one, two):
        folder.mkdir()
    two_processes.main(one)
    done = two_ranks.start("tests.scale.two_processes", two, one / "adapting" / "checkpoint-1")
    assert done.returncode == 0, done.stdout + done.stderr
    two_processes.resume(one, two / "adapting" / "checkpoint-1")
    return one, two


@pytest.fixture(scope="module")
def more(runs, tmp_path_factory):
    """The runs of the slow lane."""
    base = tmp_path_factory.mktemp("more")
    one, two = base / "one", base / "two"
    for folder in (one, two):
        folder.mkdir()
    two_processes.play_more(one, runs[0] / "dumped")
    done = two_ranks.start("tests.scale.more_processes", two, runs[1] / "dumped")
    assert done.returncode == 0, done.stdout + done.stderr
    return one, two


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("place", ALWAYS)
def test_weights_are_the_same_d12_r06(runs, place):
    same_weights(runs, place)


@pytest.mark.slow
@pytest.mark.parametrize("place", MORE)
def test_weights_are_the_same_in_every_kind_of_run(more, place):
    same_weights(more, place)


def same_weights(runs, place):
    one, two = (torch.load(folder / place / "weights.pt") for folder in runs)
    assert one.keys() == two.keys()
    for model, state in one.items():
        for name, weights in state.items():
            assert (weights - two[model][name]).abs().max() <= 1e-10, f"{model}: {name}"


def test_gradients_of_a_head_in_chunks_pass_through_the_hooks_of_ddp(runs):
    one, two = (torch.load(folder / "ddp.pt") for folder in runs)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(two[name], gradient, atol=1e-9, rtol=1e-9, msg=name)


def test_masters_of_narrow_weights_get_the_sum_over_processes(runs):
    one, two = runs
    ((master,), _) = expected = torch.load(one / "masters0.pt", weights_only=False)
    torch.testing.assert_close(master, torch.tensor([[1 - 4 * 257e-5, 1 - 4 * 5e-5]]))
    for rank in (0, 1):
        (found,), weights = torch.load(two / f"masters{rank}.pt", weights_only=False)
        assert torch.equal(found, master)
        assert torch.equal(weights["weight"], expected[1]["weight"])


def test_a_run_goes_on_with_another_number_of_processes_r05(runs):
    unbroken = torch.load(runs[0] / "adapting" / "weights.pt")
    for folder in runs:  # one from two processes, two from one
        resumed = torch.load(folder / "resumed" / "weights.pt")
        for model, state in unbroken.items():
            for name, weights in state.items():
                assert (weights - resumed[model][name]).abs().max() <= 1e-10, f"{model}: {name}"
        assert [line["update"] for line in lines(folder / "resumed" / "metrics.jsonl")] == [2, 3]


def test_networks_in_pieces_have_the_weights_and_metrics_of_one_process_r04(runs):
    """Policy and critic on one trunk, each process with a half of every weight (dp_shard = 2)."""
    one, pieces = torch.load(runs[0] / "one_trunk" / "weights.pt"), torch.load(runs[1] / "sharded" / "weights.pt")
    for model, state in one.items():
        assert state.keys() == pieces[model].keys()
        for name, weights in state.items():
            assert (weights - pieces[model][name]).abs().max() <= 1e-10, f"{model}: {name}"
    expected, found = (lines(runs[0] / "one_trunk" / "metrics.jsonl"), lines(runs[1] / "sharded" / "metrics.jsonl"))
    for first, second in zip(expected, found, strict=True):
        for name in {name for name in first if not name.startswith("time/")} - {*WALL_CLOCK}:
            assert first[name] == pytest.approx(second[name], rel=1e-9, abs=1e-9), name


@pytest.mark.slow
def test_one_process_goes_on_from_networks_in_pieces(runs):
    """The folder holds whole tensors, and no number of processes."""
    two_processes.play(runs[0] / "joined", **two_processes.ONE_TRUNK, resume=str(runs[1] / "sharded" / "checkpoint-1"))
    expected, found = (torch.load(runs[0] / place / "weights.pt") for place in ("one_trunk", "joined"))
    for model, state in expected.items():
        for name, weights in state.items():
            assert (weights - found[model][name]).abs().max() <= 1e-10, f"{model}: {name}"


@pytest.mark.parametrize("place", ALWAYS)
def test_metrics_are_the_same_d13(runs, place):
    same_metrics(runs, place)


@pytest.mark.slow
@pytest.mark.parametrize("place", MORE)
def test_metrics_are_the_same_in_every_kind_of_run(more, place):
    same_metrics(more, place)


def same_metrics(runs, place):
    one, two = (lines(folder / place / "metrics.jsonl") for folder in runs)
    assert len(one) == len(two) == 3
    for first, second in zip(one, two, strict=True):
        kept = {name for name in first if not name.startswith("time/") and name not in WALL_CLOCK}
        assert kept == {name for name in second if not name.startswith("time/") and name not in WALL_CLOCK}
        for name in kept:
            assert first[name] == pytest.approx(second[name], rel=1e-9, abs=1e-9), name


def test_what_adapts_did_so_in_the_run_that_is_compared(runs):
    """The coefficient moves at a rate between its limits, some rows are left out, and one update ends early."""
    found = lines(runs[0] / "adapting" / "metrics.jsonl")
    coefficients = [line["objective/kl_coef"] for line in found]
    assert coefficients[0] > coefficients[1]
    assert 0.5 * (1 - 0.2 * 9 / 30) ** 2 < coefficients[2] != coefficients[1]
    assert [line["optimizer/steps"] for line in found] == [4, 12, 20]  # of four minibatches: 1, 2 and 2 epochs of 3
    assert 0 < min(line["response/left_out"] for line in found) < 1


@pytest.mark.slow
def test_the_critics_training_had_something_to_decide_in_the_run_that_is_compared(more):
    found = lines(more[0] / "critic" / "metrics.jsonl")
    assert [line["optimizer/steps"] for line in found] == [0, 8, 16]
    assert [line["value/optimizer_steps"] for line in found] == [12 + 4, 12 + 8, 12 + 12]  # pretrained on three updates
    assert {line["val/baseline_fallback"] for line in found} <= {0.0, 1.0}
    assert all(0 < line["value/weight_dropped"] < 1 for line in found[1:])
    assert found[0]["value/pretrain_loss"] > 0


@pytest.mark.slow
def test_what_a_gate_drops_is_the_same_and_groups_are_dropped_over_the_border_of_processes(more):
    """Of nine rows the fifth is the first of the second process: the second group lies on both."""
    one, two = ([*lines(folder / "refilled" / "dropped.jsonl")] for folder in more)
    for each in (one, two):
        each.sort(key=lambda record: record["episode"])
    assert one == two
    kept = [record["episode"] for record in lines(more[1] / "refilled" / "rollouts.jsonl")]
    assert len(one) + 27 == lines(more[1] / "refilled" / "metrics.jsonl")[-1]["episode"]
    assert any(kept[9 * update + 3] != kept[9 * update] + 3 for update in range(3))  # its place holds another group
    assert lines(more[1] / "replaced" / "metrics.jsonl")[0]["gate/empty"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_every_auxiliary_loss_had_its_part_in_the_run_that_is_compared(more):
    for line in lines(more[0] / "auxiliary" / "metrics.jsonl"):
        assert 0 < line["auxiliary/good_rows"] < 1
        assert min(line[f"auxiliary/{name}"] for name in ("nll", "z_loss", "teacher_k2", "ptx")) > 0


def test_every_episode_of_every_process_is_on_record(runs):
    one, two = (lines(folder / "rollouts.jsonl") for folder in runs)
    assert [record["episode"] for record in two] == list(range(27))
    for of_one, of_two in zip(one, two, strict=True):
        assert of_one.pop("numbers") == pytest.approx(of_two.pop("numbers"), abs=1e-9)
    assert one == two


@pytest.mark.slow
def test_evaluations_are_the_same_row_by_row(more):
    """Numbers, texts and order; the same checkpoint is the best, and both have run to their end."""
    one, two = (lines(folder / "evaluated" / "eval_rollouts.jsonl") for folder in more)
    assert [(row["update"], row["row"], row["sample"]) for row in two] == [
        (update, row, sample) for update in range(4) for row in range(7) for sample in range(2)
    ]
    for first, second in zip(one, two, strict=True):
        for name in ("kl", "score", "judge", "start_score", "reference_score", "scores"):
            ours, theirs = first.pop(name), second.pop(name)
            assert ours is theirs is None or ours == pytest.approx(theirs, rel=1e-9, abs=1e-9), name
        assert first == second
    one, two = (lines(folder / "evaluated" / "metrics.jsonl") for folder in more)
    evaluated = [[line for line in each if "eval/objective/scores" in line] for each in (one, two)]
    assert [line["update"] for line in evaluated[1]] == [0, 1, 2, 3]
    for first, second in zip(*evaluated, strict=True):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)
        assert first.keys() >= {
            "eval/win_rate/start",
            "eval/win_rate/reference_n",
            "eval/judge/scores",
            "eval/objective/kl",
        }
    assert (
        len({tuple(sorted(each.name for each in (folder / "evaluated").glob("checkpoint-*"))) for folder in more}) == 1
    )
    assert lines(more[0] / "evaluated" / "samples.jsonl") == lines(more[1] / "evaluated" / "samples.jsonl")


def test_rows_token_by_token_and_profiles_are_those_of_the_whole_batch(runs):
    one, two = (lines(folder / "tokens.jsonl") for folder in runs)
    assert [line["episode"] for line in one] == [line["episode"] for line in two]
    for of_one, of_two in zip(one, two, strict=True):
        assert of_one.keys() == of_two.keys()
        for name, column in of_one.items():
            same = pytest.approx(column, abs=1e-6) if isinstance(column, list) and name != "tokens" else column
            assert of_two[name] == same, name
    one, two = (lines(folder / "profiles.jsonl") for folder in runs)
    for of_one, of_two in zip(one, two, strict=True):
        for name in ("along_row", "masked"):
            for of_place, other in zip(of_one[name], of_two[name], strict=True):
                assert of_place == pytest.approx(other, abs=1e-5)
        assert sum(row["count"] for row in of_two["value_deciles"]) == sum(row["count"] for row in of_one["along_row"])


def test_models_are_saved_once_and_whole(runs):
    for folder in runs:
        assert {path.name for path in folder.iterdir()} >= {"policy", "value", "metrics.jsonl"}
        assert not list(folder.glob(".*"))
