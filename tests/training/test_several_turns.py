"""Episodes of several turns or rows go the whole way: log-probs, rewards, credit, update, evaluation, records, page."""

import json
from dataclasses import replace

import pytest
import torch
from examples.several_turns import TwoSegments, TwoTurns

from nearstep import TrainingError
from nearstep.algorithm.advantages import gae, length_adaptive_lam
from nearstep.evaluation.episodes import read_episodes
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.reports.page.rows import TokenRows
from nearstep.training.experience import describe, make_experience
from nearstep.training.objectives import PolicyTerms, policy_objective
from nearstep.training.schedules import Phase
from nearstep.training.update import improve, update
from nearstep.types import Scores
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, small_recipe

TURNS = {"advantage": "turn_gae", "turn_gamma": 0.5, "turn_lam": 0.5}


def recipe_of(folder, engine, **changes):
    parts = {"engine": engine, "value_model": tiny_scalar_model(), **changes.pop("parts", {})}
    return small_recipe(folder, parts=parts, whiten_advantages=False, **changes)


def per_turn(completion_ids, **columns):
    """By token: 1 for the first token of a response, and 2 for its last."""
    return [[1.0, *[0.0] * (len(ids) - 2), 2.0] for ids in completion_ids]


def test_turns_have_one_advantage_each_and_what_was_heard_has_none(tmp_path):
    recipe = recipe_of(tmp_path, TwoTurns, **TURNS, kl_coef=0.0, parts={"reward_funcs": (per_turn,)})
    _, rollout, scores = play(recipe)
    counts = rollout.action_counts
    assert counts.tolist() == [6] * 8  # 3, then 2 that were heard, then 3
    assert (rollout.row_lengths - rollout.prompt_lengths).tolist() == [8] * 8
    experience = make_experience(rollout, scores, recipe)
    for row in range(8):
        value = experience.values[row * 6 : row * 6 + 6]
        second = 2 - value[3]
        first = 1 + 0.5 * value[3] - value[0] + 0.25 * second
        expected = torch.stack([first] * 3 + [second] * 3)
        torch.testing.assert_close(experience.advantages[row * 6 : row * 6 + 6], expected)
    # The value before the second turn is that of the state behind the last token that was heard.
    heard = rollout.action_positions.view(8, 6)[:, 3] - 1
    assert not rollout.is_action[heard].any()


def test_the_update_sees_all_that_was_heard_and_learns_from_what_was_said(tmp_path):
    recipe = recipe_of(tmp_path, TwoTurns, **TURNS)
    _, rollout, scores = play(recipe)
    now = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling)
    torch.testing.assert_close(now.sampled, rollout.logprobs, atol=1e-4, rtol=0)
    deaf = replace(rollout, tokens=torch.where(rollout.is_action, rollout.tokens, 1))
    other = rollout_logprobs(recipe.models.policy, deaf, recipe.sampling)
    assert (other.sampled - now.sampled).abs().max() > 0.1
    experience = make_experience(rollout, scores, recipe)
    leaf = now.sampled.detach().clone().requires_grad_()
    loss, _ = policy_objective(experience, replace(now, sampled=leaf), PolicyTerms.of(recipe), first=True)
    loss.backward()
    torch.testing.assert_close(leaf.grad, -experience.advantages, atol=1e-3, rtol=1e-3)


def test_a_turn_may_have_one_ratio(tmp_path):
    """By hand: the geometric mean of its tokens' ratios, and the gradient of each of them."""
    recipe = recipe_of(tmp_path, TwoTurns, **TURNS, ratio_level="turn", trust_region="unbounded")
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    moved = torch.linspace(-0.3, 0.5, len(rollout.logprobs))
    now = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling)
    leaf = (rollout.logprobs + moved).requires_grad_()
    loss, _ = policy_objective(experience, replace(now, sampled=leaf), PolicyTerms.of(recipe), first=False)
    loss.backward()
    ratio = moved.view(-1, 3).mean(1).exp().repeat_interleave(3)
    torch.testing.assert_close(leaf.grad, -experience.advantages * ratio)


@pytest.mark.parametrize("engine", [slow(TwoTurns), TwoSegments])
def test_no_split_into_micro_batches_changes_a_number(tmp_path, engine):
    found = []
    for most in (30, 10_000):
        models = {"model": tiny_causal_lm("gpt2", dtype=torch.float64),
                  "value_model": tiny_scalar_model("gpt2", dtype=torch.float64)}  # fmt: skip
        recipe = recipe_of(
            tmp_path / str(most), engine, dtype=torch.float64, max_tokens_per_microbatch=most, parts=models
        )
        _, rollout, scores = play(recipe)
        experience = make_experience(rollout, scores, recipe)
        metrics, _ = improve(experience, Phase(1, 1, policy=True, critic=True), recipe, first=True)
        found.append(metrics.numbers() | describe(experience, scores, recipe).numbers())
    assert found[0].keys() == found[1].keys()
    for name, number in found[0].items():
        assert number == pytest.approx(found[1][name], rel=1e-8, abs=1e-10), name


def test_segments_of_an_episode_are_one_walk(tmp_path):
    """The value of the second row's first state follows the last of the first row; the score stands at its end."""
    changes = {"gamma": 0.9, "lam": 0.8, "kl_coef": 0.0}
    recipe = recipe_of(tmp_path, TwoSegments, **changes)
    prompts, rollout, scores = play(recipe)
    assert len(rollout) == 2 * len(prompts) == 2 * len(scores.total)
    assert rollout.episodes.tolist() == [episode for episode in prompts.episodes for _ in range(2)]
    experience = make_experience(rollout, scores, recipe)
    values = experience.values.view(8, 6)
    expected = torch.zeros(8, 6)
    running, following = torch.zeros(8), torch.zeros(8)
    for place in reversed(range(6)):
        reward = scores.total if place == 5 else torch.zeros(8)
        running = reward + 0.9 * following - values[:, place] + 0.9 * 0.8 * running
        expected[:, place], following = running, values[:, place]
    torch.testing.assert_close(experience.advantages.view(8, 6), expected)
    torch.testing.assert_close(experience.returns.view(8, 6), expected + values)
    assert experience.scores.view(8, 2)[:, 0].tolist() == [0.0] * 8
    torch.testing.assert_close(experience.scores.view(8, 2)[:, 1], scores.total)
    numbers = describe(experience, scores, recipe).numbers()
    assert numbers["objective/scores"] == pytest.approx(float(scores.total.mean()))
    assert numbers["response/length_mean"] == 6
    _, steps = update(experience, recipe.schedule.phases(1), recipe)
    assert steps.policy == steps.critic == 2


def test_a_cut_episode_is_valued_at_the_end_of_its_last_row(tmp_path):
    recipe = recipe_of(tmp_path, TwoSegments, bootstrap_truncated=True, gamma=0.9, kl_coef=0.0)
    _, rollout, scores = play(recipe)
    rollout = replace(rollout, finished=torch.tensor([True, False] * 8))
    experience = make_experience(rollout, scores, recipe)
    ends = rollout_values(recipe.models.critic, rollout).final.view(8, 2)[:, 1]
    torch.testing.assert_close(experience.final_values.view(8, 2), torch.stack([torch.zeros(8), ends], 1))
    last = scores.total + 0.9 * ends - experience.values.view(8, 6)[:, 5]
    torch.testing.assert_close(experience.advantages.view(8, 6)[:, 5], last)


def test_rewards_of_tokens_stand_in_the_last_row(tmp_path):
    recipe = recipe_of(tmp_path, TwoSegments, kl_coef=0.0, parts={"reward_funcs": (per_turn,)})
    _, rollout, scores = play(recipe)
    assert scores.dense.view(8, 6).tolist() == [[0.0] * 3 + [1.0, 0.0, 2.0]] * 8
    assert torch.equal(make_experience(rollout, scores, recipe).rewards, scores.dense)


def test_lambda_by_length_counts_the_whole_episode(tmp_path):
    recipe = recipe_of(tmp_path, TwoSegments, lam_length_alpha=0.5, kl_coef=0.0)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    nothing, counts = torch.zeros(8), torch.full((8,), 6)
    walked = gae(
        experience.rewards, experience.values, counts, final_values=nothing, final_advantages=nothing, gamma=1.0,
        lam=length_adaptive_lam(counts, 0.5),
    )  # fmt: skip
    torch.testing.assert_close(experience.advantages, walked)


def test_groups_compare_episodes_however_many_rows_they_have(tmp_path):
    recipe = recipe_of(
        tmp_path, TwoSegments, advantage="group_mean", num_generations=2, kl_coef=0.0, parts={"value_model": None}
    )
    _, rollout, _ = play(recipe)
    totals = torch.tensor([1.0, 3.0, 0.0, 8.0, 5.0, 5.0, 2.0, 4.0])
    experience = make_experience(rollout, Scores(totals), recipe)
    expected = torch.tensor([-1.0, 1.0, -4.0, 4.0, 0.0, 0.0, -1.0, 1.0]).repeat_interleave(6)
    torch.testing.assert_close(experience.advantages, expected)
    assert experience.prompt_numbers.tolist() == [number for number in range(4) for _ in range(4)]


def test_one_row_for_each_episode_has_the_bits_that_it_had(tmp_path):
    """Naming the episodes of rows that are alone changes nothing."""
    recipe = recipe_of(tmp_path, None)
    prompts, rollout, scores = play(recipe)
    named = replace(rollout, episodes=torch.tensor(prompts.episodes))
    one, two = (make_experience(each, scores, recipe) for each in (rollout, named))
    for name in ("advantages", "returns", "rewards", "scores", "trained", "final_values", "prompt_numbers"):
        assert torch.equal(vars(one)[name], vars(two)[name]), name


def test_a_score_that_failed_leaves_out_all_rows_of_its_episode(tmp_path):
    recipe = recipe_of(tmp_path, TwoSegments)
    _, rollout, _ = play(recipe)
    experience = make_experience(rollout, Scores(torch.tensor([float("nan"), *range(7)])), recipe)
    assert experience.trained.tolist() == [False, False, *[True] * 14]


def test_rows_of_an_episode_that_are_apart_are_refused(tmp_path):
    recipe = recipe_of(tmp_path, TwoSegments)
    prompts, rollout, _ = play(recipe)
    apart = rollout.select(torch.tensor([0, 2, 1, 3]))
    with pytest.raises(TrainingError, match=f"rows of episode {prompts.episodes[0]} do not stand side by side"):
        make_experience(apart, Scores(torch.zeros(4)), recipe)


ROWS = [{"prompt": text, "reference": text * 2} for text in ("a", "bc", "def", "ghij")]
RUN = {"log_rollouts": True, "num_sample_generations": 1, "critic_columns": ["reference"]}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("engine", [TwoTurns, slow(TwoSegments)])
def test_records_and_page_show_turns_and_segments(tmp_path, engine):
    given = {"engine": engine, "train_dataset": ROWS, "eval_dataset": ROWS[:2]}
    trainer_of(tmp_path, given=given, total_episodes=8, save_steps=None, **RUN).train()
    episodes, tokens, page = lines(tmp_path / "rollouts.jsonl"), lines(tmp_path / "tokens.jsonl"), TokenRows()
    for line in tokens:
        page.add(line)
    if engine is TwoTurns:
        assert {line["turns"] for line in episodes} == {2}
        for line in tokens:
            assert [bool(text) for text in line["before"]] == [False] * 3 + [True] + [False] * 2
        assert [row["before"] for row in page.rows()] == [
            line["before"] for line in sorted(tokens, key=lambda line: line["episode"])
        ]
        return
    assert [line["segment"] for line in episodes] == [0, 1] * 8
    for line in episodes:
        assert (line["total_score"] is None) == (line["final_score"] is None) == (line["segment"] == 0)
    file = read_episodes(str(tmp_path / "rollouts.jsonl"), byte_tokenizer(), batch_size=4)
    (read,) = file.batches()  # what `nearstep score` scores again
    assert read.logged == [line["total_score"] for line in episodes if line["segment"] == 1]
    assert not any("before" in line for line in tokens)
    assert "before" not in page.rows()[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TwoTurns, TwoSegments])
def test_whole_runs_go_on_and_are_replayed_with_the_same_bits(tmp_path, engine):
    shared = {**RUN, "total_episodes": 16, "eval_steps": 2}
    given = {"engine": engine, "eval_dataset": ROWS[:2], "train_dataset": ROWS}
    whole = trainer_of(tmp_path / "whole", given=given, dump_rollouts=str(tmp_path / "rollouts"), **shared)
    whole.train()
    trainer_of(tmp_path / "broken", given=given, **{**shared, "total_episodes": 8}).train()
    rest = trainer_of(tmp_path / "broken", given=given, resume="auto", **shared)
    rest.train()
    assert_same_bits(everything(rest), everything(whole))
    again = trainer_of(tmp_path / "again", given=given, replay_rollouts=str(tmp_path / "rollouts"), **shared)
    again.train()
    assert_same_bits(everything(again), everything(whole))
