"""What a run that goes on says is what the unbroken one says, and it mixes with the folder of no other run."""

import shutil
from dataclasses import replace

import pytest
import torch

from nearstep import CheckpointError, ConfigError
from nearstep.training.first_answers import FirstAnswers
from tests.checkpoint.saved_runs import ROWS, records, trainer_of, without_times
from tests.training.runs import play, small_recipe


def cards(folder):
    """The model cards that the end of a run leaves, by role."""
    return {role: (folder / role / "README.md").read_text() for role in ("policy", "value")}


@pytest.mark.slow
def test_a_run_that_goes_on_tells_all_that_the_unbroken_one_does(tmp_path):
    """Evaluations, samples beside the start's, the rules' level, the reward's answers to damage at the end, the history
    and the cards."""
    changed = {
        "total_episodes": 72, "save_steps": 4, "eval_steps": 3, "eval_on_start": True, "num_eval_rows": 2,
        "num_sample_generations": 3, "record_token_rows": 1, "rollouts_max_mib": 0.009, "num_ppo_epochs": 1,
    }  # fmt: skip
    whole = trainer_of(tmp_path, **changed).train()
    written, told = records(tmp_path), cards(tmp_path)
    assert "objective/own_over_cut" in written["metrics.jsonl"][-2]  # the last line is an evaluation
    assert max(line["update"] for line in written["rollouts.jsonl"]) < 4  # full before the run stops
    on = trainer_of(tmp_path, **changed).train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert records(tmp_path) == written
    assert cards(tmp_path) == told
    assert [without_times(line) for line in on.metrics] == [without_times(line) for line in whole.metrics]


def test_first_answers_are_dealt_anew_to_another_number_of_processes(tmp_path):
    recipe = small_recipe(tmp_path)
    prompts, rollout, _ = play(recipe)
    numbers = recipe.prompts.numbers(prompts.episodes)
    halves = [torch.arange(5), torch.arange(5, 8)]
    parts = [
        FirstAnswers.of([numbers[row] for row in rows], prompts_at(prompts, rows), rollout.select(rows))
        for rows in halves
    ]
    kept = FirstAnswers.joined(parts)
    assert [kept.rows(rank, 2) for rank in (0, 1)] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert [kept.rows(rank, 3) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert kept.rows(0, 1) == [*range(8)]
    again = recipe.prompts.again(kept.numbers[[6, 1]].tolist(), kept.episodes[[6, 1]].tolist())
    assert again == prompts_at(prompts, torch.tensor([6, 1]))
    found = kept.rollout([6, 1], rollout.tokens.device)
    assert found.completion_ids() == [rollout.completion_ids()[row] for row in (6, 1)]
    assert found.finished.tolist() == rollout.finished[[6, 1]].tolist()


def prompts_at(prompts, rows):
    chosen = rows.tolist()
    return replace(
        prompts,
        ids=[prompts.ids[row] for row in chosen],
        inputs=[prompts.inputs[row] for row in chosen],
        columns={name: [column[row] for row in chosen] for name, column in prompts.columns.items()},
        episodes=[prompts.episodes[row] for row in chosen],
    )


def test_a_stream_gives_its_first_prompts_again(tmp_path):
    from datasets import Dataset

    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    recipe = small_recipe(tmp_path, parts={"train_dataset": stream}, total_episodes=8)
    (prompts,) = recipe.prompts.batches(after=0, until=1)
    numbers = recipe.prompts.numbers(prompts.episodes)
    rows = torch.tensor([5, 0, 2])
    chosen = [numbers[row] for row in rows], [prompts.episodes[row] for row in rows]
    assert recipe.prompts.again(*chosen) == prompts_at(prompts, rows)


@pytest.mark.slow
def test_a_fork_sets_the_records_that_lie_in_its_folder_aside(tmp_path):
    trainer_of(tmp_path / "first", total_episodes=16).train()
    trainer_of(tmp_path / "second", total_episodes=8, save_steps=None).train()
    before = records(tmp_path / "second")["metrics.jsonl"]
    trainer_of(tmp_path / "second", fork_from=str(tmp_path / "first" / "checkpoint-1"), total_episodes=16).train()
    after = records(tmp_path / "second")
    assert after["metrics.1.jsonl"] == before
    assert [line["update"] for line in after["metrics.jsonl"]] == [2]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_goes_on_in_no_folder_but_its_own(tmp_path):
    trainer_of(tmp_path / "one", total_episodes=16).train()
    trainer_of(tmp_path / "other", total_episodes=16, seed=7).train()
    before = records(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other holds another run up to update 2 than .*checkpoint-1 belongs to"):
        trainer_of(tmp_path / "other", total_episodes=16, resume=str(tmp_path / "one" / "checkpoint-1")).train()
    assert records(tmp_path / "other") == before
    shutil.copytree(tmp_path / "one" / "checkpoint-1", tmp_path / "kept" / "checkpoint-1")
    copied = trainer_of(tmp_path / "one", total_episodes=16, resume=str(tmp_path / "kept" / "checkpoint-1"))
    assert copied.train().updates == 2


@pytest.mark.slow
def test_the_episodes_of_an_update_stay_whatever_makes_them(tmp_path):
    """Without batch_size they come from what is free to change, the number of processes among it."""
    trainer_of(tmp_path, total_episodes=16).train()
    longer = {"total_episodes": 24, "resume": "auto", "per_device_train_batch_size": 4}
    with pytest.raises(CheckpointError, match=r"has 8 episodes, and now it would have 4 .*Give --batch_size 8"):
        trainer_of(tmp_path, **longer).train()
    assert trainer_of(tmp_path, **longer, batch_size=8).train().updates == 3
