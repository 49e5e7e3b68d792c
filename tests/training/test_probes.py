"""What is looked at beside the updates: the exact KL, a random forward pass, a reward that is upside down."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from nearstep.algorithm.kl import kl_estimate
from nearstep.models.distribution import Sampling
from nearstep.models.forward import exact_kl
from nearstep.models.forward.exact_kl import rollout_exact_kl
from nearstep.training.experience import make_experience
from nearstep.training.probes import Probes, spread
from nearstep.training.response_metrics import repeated_runs, response_metrics, token_correlation
from nearstep.training.reward_probe import ProbedAnswers, own_over_damaged
from nearstep.training.state import State
from tests.lanes import slow
from tests.tiny import tiny_causal_lm
from tests.training.runs import low_ids, play, small_recipe


def other_reference(folder, **changes):
    """A recipe whose reference is another model."""
    return small_recipe(folder, parts={"ref_model": tiny_causal_lm(seed=3)}, **changes)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_exact_kl_is_the_sum_over_the_vocabulary(tmp_path, temperature, monkeypatch):
    monkeypatch.setitem(exact_kl.LOGITS_HELD, "cpu", 1)  # in blocks of 16 actions
    recipe = other_reference(tmp_path, temperature=temperature, response_length=12)
    prompts, rollout, _ = play(recipe)
    found = rollout_exact_kl(recipe.models.policy, recipe.models.reference, rollout, recipe.sampling)
    expected = []
    for prompt, answer in zip(prompts.ids, rollout.completion_ids(), strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        with torch.no_grad():
            own, theirs = (
                (model(ids).logits[0, places] / temperature).log_softmax(-1)
                for model in (recipe.models.policy.model, tiny_causal_lm(seed=3))
            )
        expected.append((own.exp() * (own - theirs)).sum(-1))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert (found > 0).all()


def test_estimates_have_the_exact_kl_as_their_mean(tmp_path):
    # Of one place many tokens are drawn: k1 and k3 are right in the mean, k2 is not.
    torch.manual_seed(0)
    own, theirs = (torch.randn(1, 50, dtype=torch.float64).mul(0.7).log_softmax(-1) for _ in range(2))
    exact = float((own.exp() * (own - theirs)).sum())
    means = {name: float((own.exp() * kl_estimate(own[0], theirs[0], name)).sum()) for name in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact)
    assert means["k3"] == pytest.approx(exact)
    assert abs(means["k2"] - exact) > 0.03 * exact


def test_the_exact_kl_is_told_where_it_is_asked_for(tmp_path):
    recipe = other_reference(tmp_path, kl_exact_rows=3)
    prompts, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    shown = Probes(recipe).look(prompts, experience, State(2)).numbers()
    assert set(shown) == {"objective/kl_exact"}
    rows = rollout_exact_kl(recipe.models.policy, recipe.models.reference, rollout, Sampling(1.0))
    rows = torch.stack([part.sum() for part in rows.split(rollout.action_counts.tolist())])
    assert shown["objective/kl_exact"] == pytest.approx(float(rows[spread(8, 3)].mean()), rel=1e-4)


def test_two_passes_agree_unless_the_model_draws_numbers(tmp_path):
    recipe = small_recipe(tmp_path)
    prompts, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    assert Probes(recipe).look(prompts, experience, State(1)).numbers()["policy/repeat_gap"] == 0
    assert "policy/repeat_gap" not in Probes(recipe).look(prompts, experience, State(2)).numbers()
    layer = recipe.models.policy.model.model.layers[0]
    layer.register_forward_hook(lambda layer, given, states: torch.nn.functional.dropout(states, 0.1))
    assert Probes(recipe).look(prompts, experience, State(1)).numbers()["policy/repeat_gap"] > 0.01


def rising(completion_ids, **columns):
    """How often the next token is larger: whole answers in order have more of it."""
    return [sum(a < b for a, b in pairwise(ids)) for ids in completion_ids]


def falling(**columns):
    return [-value for value in rising(**columns)]


def alike(prompts, **columns):
    return [2.0] * len(prompts)


@pytest.mark.parametrize(("reward", "wins"), [(rising, 1.0), (falling, 0.0), (alike, 0.5)])
def test_a_reward_that_prefers_damage_is_seen(tmp_path, reward, wins):
    recipe = small_recipe(tmp_path, parts={"reward_funcs": (reward,)}, response_length=8)
    prompts, rollout, _ = play(recipe)
    rows = zip(rollout.completion_ids(), rollout.finished.tolist(), strict=True)
    ordered = [sorted(ids[:-1]) + ids[-1:] if ended else sorted(ids) for ids, ended in rows]
    tokens = rollout.tokens.clone()
    tokens[rollout.is_action] = torch.tensor([token for ids in ordered for token in ids])
    answers = ProbedAnswers.some(prompts, replace(rollout, tokens=tokens), [0, 2, 5])
    shown = own_over_damaged(answers, recipe.rewards, seed=0).numbers()
    assert shown["objective/own_over_cut"] == pytest.approx(wins, abs=0.1)
    assert shown["objective/own_over_shuffled"] == pytest.approx(wins, abs=0.1)


def about_the_prompt(prompts, completion_ids, **columns):
    """How many bytes of the prompt the answer has."""
    return [
        float(sum(token in prompt.encode() for token in ids))
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def against_the_prompt(**columns):
    return [-value for value in about_the_prompt(**columns)]


@pytest.mark.parametrize(
    ("reward", "own"), [(about_the_prompt, 1.0), (against_the_prompt, 0.0), (rising, 0.5), (low_ids, 0.5)]
)
@pytest.mark.parametrize("rows", [slow(2), 7, slow(8)])
def test_answers_to_other_prompts_are_damage_only_to_a_reward_that_reads_the_prompt(tmp_path, reward, own, rows):
    recipe = small_recipe(tmp_path, parts={"reward_funcs": (reward,)}, response_length=3)
    prompts, rollout, _ = play(recipe)
    prompts = replace(prompts, inputs=[chr(97 + row) * 4 for row in range(8)])
    tokens = rollout.tokens.clone()
    places = rollout.action_counts.tolist()
    tokens[rollout.is_action] = torch.tensor([97 + row for row, count in enumerate(places) for _ in range(count)])
    answers = ProbedAnswers.some(prompts, replace(rollout, tokens=tokens), list(range(rows)))
    shown = own_over_damaged(answers, recipe.rewards, seed=0).numbers()["objective/own_over_swapped"]
    # A row in the middle of an odd number is its own partner once in each exchange, and ties with itself.
    alone = 1 / rows if rows % 2 else 0.0
    assert shown == pytest.approx(own * (1 - alone) + 0.5 * alone)


def test_functions_are_asked_once_more_only_at_the_end_of_a_run_of_some_length(tmp_path):
    calls = []

    def counted(completion_ids, **columns):
        calls.append(len(completion_ids))
        return low_ids(completion_ids)

    recipe = small_recipe(tmp_path, parts={"reward_funcs": (counted,)}, total_episodes=80)
    prompts, rollout, scores = play(recipe)
    experience, probes = make_experience(rollout, scores, recipe), Probes(recipe)
    seen = {update: probes.look(prompts, experience, State(update)).numbers() for update in (1, 2, 9, 10)}
    assert ["objective/own_over_cut" in seen[update] for update in (1, 2, 9, 10)] == [False, False, False, True]
    assert calls == [8] * 8  # the play; then the answers once more, and six kinds of damage


def test_runs_of_three_tokens_that_a_row_has_twice():
    actions = torch.tensor([1, 2, 3, 1, 2, 3, 9, 9, 9, 9, 1, 2, 3])
    # Rows 1 2 3 1 2 3 | 9 9 9 9 | 1 2 3.
    # Runs: 123 231 312 123* | 999 999* | 123, of which two stand in their row before.
    assert int(repeated_runs(actions, torch.tensor([6, 4, 3])).sum()) == 2
    assert len(repeated_runs(actions, torch.tensor([6, 4, 3]))) == 7
    assert len(repeated_runs(torch.tensor([1, 2]), torch.tensor([2]))) == 0


def test_a_response_is_a_duplicate_where_another_prompt_has_it(tmp_path):
    recipe = small_recipe(tmp_path)
    _, rollout, _ = play(recipe)
    assert response_metrics(rollout)["response/duplicates"].number() == 0
    twice = rollout.select(torch.tensor([0, 0, 1]))  # of one prompt: several samples may agree
    assert response_metrics(twice)["response/duplicates"].number() == 0


def test_the_correlation_with_the_count_of_one_token():
    # Token 7 stands 0, 1, 2, 3 times in rows of 1, 2, 3, 4; token 5 once in each, so it says nothing.
    lengths = torch.tensor([1, 2, 3, 4] * 2)
    actions = torch.tensor([5, 5, 7, 5, 7, 7, 5, 7, 7, 7] * 2)
    every = torch.ones(8, dtype=torch.bool)
    exact = torch.tensor([0.0, 1, 2, 3] * 2)
    assert token_correlation(actions, lengths, exact, every).tolist() == pytest.approx([1.0])
    # With 0, 0, 1, 1 in its place: covariance ½, variances 5/4 and ¼.
    half = torch.tensor([0.0, 0, 1, 1] * 2)
    assert token_correlation(actions, lengths, half, every).tolist() == pytest.approx([0.5 / (5 / 4 / 4) ** 0.5])
    assert token_correlation(actions, lengths, torch.ones(8), every).tolist() == []
