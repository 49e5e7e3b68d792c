"""The numbers of a traced row are those that train: its gradient, put together, is the first step's."""

import json
from dataclasses import dataclass
from math import exp

import pytest
import torch

from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import make_experience
from nearstep.training.generation import generate
from nearstep.training.loop import train
from nearstep.training.row_trace import trace_row
from nearstep.training.state import State
from nearstep.training.update import improve
from nearstep.types import Rollout
from tests.training.runs import small_recipe


def played(recipe):
    """The experience of the first update."""
    prompts = recipe.prompts.batch(1)
    rollout = generate(prompts, recipe, version=1)
    return rollout, make_experience(rollout, recipe.rewards(prompts, rollout), recipe)


@pytest.mark.parametrize("changed", [{}, {"trust_region": "topk_tv", "divergence_top_k": 3}])
def test_the_gradients_of_all_rows_are_those_of_a_step(tmp_path, changed):
    recipe = small_recipe(tmp_path, dtype=torch.float64, max_grad_norm=None, optim="sgd", learning_rate=0.0, **changed)
    rollout, experience = played(recipe)
    rows = [trace_row(experience, row, recipe) for row in range(len(experience))]
    traced = torch.tensor([token.gradient for row in rows for token in row], dtype=torch.float64)
    now = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling).sampled
    (traced * now).sum().backward()
    weights = recipe.learners.policy.parameters
    by_hand = [weight.grad.clone() for weight in weights]
    improve(experience, recipe.schedule.phases(1)[0], recipe, first=True)
    for expected, weight in zip(by_hand, weights, strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-10, rtol=1e-6)


def test_a_row_shows_what_the_run_recorded(tmp_path):
    recipe = small_recipe(tmp_path)
    rollout, experience = played(recipe)
    tokens = trace_row(experience, 2, recipe)
    begin = int(rollout.action_counts[:2].sum())
    assert [token.token for token in tokens] == rollout.completion_ids()[2]
    for place, token in enumerate(tokens, start=begin):
        assert token.sampled_logprob == float(rollout.logprobs[place])
        assert token.value == float(experience.values[place])
        assert token.whitened_advantage == float(experience.advantages[place])
        assert token.ratio == pytest.approx(1, abs=1e-5)
        assert token.region_weight == 1
        assert token.gradient == pytest.approx(-token.whitened_advantage / len(rollout.logprobs), rel=1e-4)


@dataclass(frozen=True)
class Halves:
    """A region that leaves half of a token which has grown."""

    top_k: int = 0

    def weight(self, now, old, advantages, rows):
        return torch.where(now.sampled > old.sampled, 0.5, 1.0)


def records(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_run_records_a_few_rows_of_logged_updates_token_by_token(tmp_path):
    recipe = small_recipe(tmp_path, logging_steps=2, record_token_rows=3, num_ppo_epochs=1)  # of updates 2 and 3
    with recipe.report:
        train(recipe, State())
    tokens, episodes = records(tmp_path, "tokens.jsonl"), records(tmp_path, "rollouts.jsonl")
    assert [line["update"] for line in tokens] == [2, 2, 2, 3, 3, 3]
    assert [line["update"] for line in records(tmp_path, "profiles.jsonl")] == [2, 3]
    by_episode = {line["episode"]: line for line in episodes}
    for line in tokens:
        episode = by_episode[line["episode"]]
        assert (line["prompt"], line["score"]) == (episode["prompt"], episode["final_score"])
        assert (line["token_ids"], line["finished"]) == (episode["completion_ids"], episode["finished"])
        mean = sum(map(abs, line["advantage"])) / len(line["advantage"])
        assert mean == pytest.approx(episode["numbers"]["advantage_abs"], rel=1e-5)
        assert sum(line["kl"]) == pytest.approx(episode["numbers"]["kl"], rel=1e-4, abs=1e-6)
        assert line["ratio"] == pytest.approx(
            [exp(new - old) for new, old in zip(line["logprob"], line["old_logprob"], strict=True)], rel=1e-4
        )
        moved = [ratio for ratio in line["ratio"] if abs(ratio - 1) > 1e-3]
        assert moved  # after the update, not before
    largest = max((line for line in episodes if line["update"] == 3), key=lambda line: line["numbers"]["advantage_abs"])
    assert tokens[3]["episode"] == largest["episode"]
    now = rollout_logprobs(recipe.models.policy, rollout_of_line(tokens[-1], by_episode), recipe.sampling)
    assert tokens[-1]["logprob"] == pytest.approx(now.sampled.tolist(), abs=1e-5)
    assert tokens[-1]["entropy"] == pytest.approx(now.entropy.tolist(), abs=1e-4)


def rollout_of_line(line, by_episode):
    prompt, said = by_episode[line["episode"]]["prompt_ids"], line["token_ids"]
    return Rollout(
        tokens=torch.tensor(prompt + said),
        is_action=torch.tensor([False] * len(prompt) + [True] * len(said)),
        row_lengths=torch.tensor([len(prompt) + len(said)]),
        logprobs=torch.zeros(len(said)),
        finished=torch.tensor([False]),
        policy_version=torch.tensor([1]),
    )


def test_a_row_has_one_ratio_where_the_region_is_one_of_sequences(tmp_path):
    recipe = small_recipe(tmp_path, ratio_level="row", cliprange=1e-4, learning_rate=1e-2, total_episodes=8)
    with recipe.report:
        train(recipe, State())
    for line in records(tmp_path, "tokens.jsonl"):
        assert max(line["ratio"]) - min(line["ratio"]) < 1e-5
        outside = line["ratio"][0] > 1 + 1e-4
        for advantage, weight in zip(line["whitened_advantage"], line["region_weight"], strict=True):
            assert weight == (0.0 if outside == (advantage > 0) else 1.0)


def test_the_weight_of_a_region_that_damps_and_a_batch_of_fewer_rows(tmp_path):
    recipe = small_recipe(tmp_path, learning_rate=1e-2, total_episodes=8, record_token_rows=9, parts={
        "trust_region": Halves()
    })  # fmt: skip
    with recipe.report:
        train(recipe, State())
    tokens = records(tmp_path, "tokens.jsonl")
    assert len(tokens) == 8  # there are no more rows
    for line in tokens:
        assert line["region_weight"] == [0.5 if ratio > 1 else 1.0 for ratio in line["ratio"]]
