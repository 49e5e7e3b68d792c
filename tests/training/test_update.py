"""Updates: exactly epochs × minibatches steps, gradients that no split changes, clipping, first ratios, empty rows."""

import copy
import dataclasses
import warnings

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.models.forward import packing
from nearstep.models.forward.forward import rollout_logprobs, row_states
from nearstep.training import update as update_module
from nearstep.training.experience import describe, make_experience
from nearstep.training.loop import train
from nearstep.training.state import State, Steps
from nearstep.training.update import improve, minibatches, update
from nearstep.types import Rollout, Scores
from tests.lanes import slow
from tests.tiny import tiny_causal_lm
from tests.training.runs import play, small_recipe


def steps_of(recipe, monkeypatch):
    """Count the optimizer steps of a whole run."""
    steps = []
    plain = update_module.improve
    monkeypatch.setattr(update_module, "improve", lambda *a, **k: steps.append(len(a[0])) or plain(*a, **k))
    train(recipe, State())
    return steps


@pytest.mark.parametrize(
    ("rows", "accumulation", "minibatches_per_epoch"),
    [slow((8, 1, 1)), slow((8, 1, 3)), (2, 4, 2), slow((1, 8, 3)), (3, 3, 2)],
)
def test_steps_are_epochs_times_minibatches_d1_d2(tmp_path, monkeypatch, rows, accumulation, minibatches_per_epoch):
    """Whatever the micro-batches, also where an update crosses the end of the data."""
    recipe = small_recipe(
        tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
        num_mini_batches=minibatches_per_epoch, total_episodes=rows * accumulation * 3,
        parts={"model": tiny_causal_lm(layers=1)},
    )  # fmt: skip
    steps = steps_of(recipe, monkeypatch)
    assert len(steps) == 3 * 2 * minibatches_per_epoch
    assert sum(steps) == 3 * 2 * rows * accumulation
    assert max(steps) - min(steps) <= 1


def weights_after(tmp_path, **changes):
    recipe = small_recipe(tmp_path, dtype=torch.float64, num_mini_batches=2, **{"batch_size": 8, **changes})
    train(recipe, State())
    models = (recipe.models.policy.model, recipe.models.critic.model)
    return torch.cat([parameter.detach().flatten() for model in models for parameter in model.parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights after a run whose minibatches are not split."""
    return weights_after(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("changes", [
    slow({"per_device_train_batch_size": 1}), {"per_device_train_batch_size": 3},
    slow({"max_tokens_per_microbatch": 17}), {"local_rollout_forward_batch_size": 3},
    slow({"gradient_checkpointing": True}),
])  # fmt: skip
def test_no_split_changes_the_weights_d11_r06(tmp_path, changes, whole):
    split = weights_after(tmp_path, **changes)
    assert (whole - split).abs().max() <= 1e-10


@pytest.mark.parametrize(
    "changes", [slow({}), {"max_tokens_per_microbatch": 20}, slow({"gradient_checkpointing": True})]
)
def test_sharing_prompts_changes_no_weights(tmp_path, monkeypatch, changes):
    """Four samples of each prompt, in minibatches that part a group; against rows that share nothing."""

    def weights(folder):
        parts = {"model": tiny_causal_lm("gpt_neox", dtype=torch.float64)}  # its norms compute in float64, too
        return weights_after(folder, parts=parts, num_generations=4, batch_size=12, **changes)

    shared = weights(tmp_path / "a")
    monkeypatch.setattr(packing, "shared_leads", lambda items, lengths, leads: torch.zeros_like(leads))
    apart = weights(tmp_path / "b")
    assert (shared - apart).abs().max() <= 1e-10


def test_samples_of_a_prompt_come_together_and_prompts_in_random_order(tmp_path):
    recipe = small_recipe(tmp_path, num_mini_batches=2, num_generations=4, batch_size=24)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    phase = recipe.schedule.phases(1)[0]
    orders = []
    for epoch in range(4):
        prompts = [m.rollout.prompt_ids() for m in minibatches(experience, phase, epoch, recipe)]
        assert sorted(ids for of in prompts for ids in of) == sorted(rollout.prompt_ids())
        orders.append([[tuple(ids) for ids in of[::4]] for of in prompts])
        assert all(of[start] == of[start + 3] for of in prompts for start in range(0, 12, 4))
    assert any(order != orders[0] for order in orders)


def test_micro_batches_count_a_shared_prompt_once(tmp_path):
    with pytest.warns(UserWarning, match="without a stop token"):
        recipe = small_recipe(tmp_path, num_generations=4, response_length=2, stop_token=None)
    rollout = play(recipe)[1]
    experience = make_experience(rollout, Scores(torch.zeros(8)), recipe)
    assert rollout.shared_prompts.tolist() == [
        0,
        *[len(rollout.prompt_ids()[0])] * 3,
        0,
        *[len(rollout.prompt_ids()[4])] * 3,
    ]
    first = len(rollout.prompt_ids()[0]) + 4 * 2
    assert len(next(experience.split(first, 8))) == 4
    assert len(next(experience.split(first - 1, 8))) == 3
    assert [len(m) for m in experience.split(10_000, 3)] == [3, 3, 2]


def test_weights_do_change_and_depend_on_the_seed(tmp_path, whole):
    assert (whole - weights_after(tmp_path, seed=1)).abs().max() > 1e-4


def test_minibatches_cover_every_row_once_and_differ_by_epoch_and_update(tmp_path):
    recipe = small_recipe(tmp_path, num_mini_batches=3)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, dataclasses.replace(scores, total=torch.arange(8.0)), recipe)
    phase = recipe.schedule.phases(1)[0]
    orders = [[m.scores.tolist() for m in minibatches(experience, phase, epoch, recipe)] for epoch in (0, 1, 0)]
    assert sorted(score for m in orders[0] for score in m) == list(range(8))
    assert orders[0] == orders[2] != orders[1]
    later = dataclasses.replace(phase, update=2)
    assert [m.scores.tolist() for m in minibatches(experience, later, 0, recipe)] != orders[0]


def test_a_minibatch_is_divided_by_its_own_tokens_d32(tmp_path):
    """Eight tiny steps on a row each move the policy 8 times as far as one on the mean of the rows."""
    moved = []
    for changes in ({"num_mini_batches": 8}, {"loss_aggregation": "sequence_mean"}):
        recipe = small_recipe(
            tmp_path / str(len(moved)), dtype=torch.float64, optim="sgd", learning_rate=1e-6, max_grad_norm=None,
            num_ppo_epochs=1, total_episodes=8, stop_token_id=tuple(range(0, 258, 5)), kl_coef=0.0, **changes,
        )  # fmt: skip
        before = [parameter.detach().clone() for parameter in recipe.models.policy.model.parameters()]
        train(recipe, State())
        after = recipe.models.policy.model.parameters()
        moved.append(torch.cat([(new.detach() - old).flatten() for new, old in zip(after, before, strict=True)]))
    assert (moved[0] - 8 * moved[1]).abs().max() < 1e-3 * moved[0].abs().max()


def test_max_grad_norm_limits_the_step_d3(tmp_path):
    """Plain SGD: the weights of both networks together move by learning rate × max_grad_norm."""
    recipe = small_recipe(tmp_path, dtype=torch.float64, optim="sgd", learning_rate=0.5, max_grad_norm=1e-3)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    models = (recipe.models.policy.model, recipe.models.critic.model)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    metrics, _ = improve(experience, recipe.schedule.phases(1)[0], recipe, first=True)
    moved = [
        (after - old[name]).double().flatten()
        for model, old in zip(models, before, strict=True) for name, after in model.state_dict().items()
    ]  # fmt: skip
    assert torch.cat(moved).norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-4)
    assert float(metrics.by_name["policy/grad_norm"].sum) > 1e-3


def test_first_ratios_are_one_d20_r08(tmp_path):
    recipe = small_recipe(tmp_path, response_length=20)
    _, rollout, scores = play(recipe)
    metrics, _ = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    assert float(metrics.by_name["val/ratio_max_gap_first"].value) <= 1e-5


@pytest.mark.parametrize("cut", [slow({"top_k": 5}), slow({"top_p": 0.6}), {"top_k": 30, "top_p": 0.8}])
def test_cut_distributions_are_the_same_on_both_sides(tmp_path, cut):
    recipe = small_recipe(tmp_path, response_length=20, **cut)
    _, rollout, _ = play(recipe)
    again = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling).sampled
    torch.testing.assert_close(again, rollout.logprobs, atol=1e-5, rtol=0)


def test_metrics_do_not_depend_on_minibatches_d1_d13(tmp_path):
    """With a learning rate of 0 nothing moves, so every split must report the same."""
    found = []
    for changes in ({}, {"num_mini_batches": 4}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        recipe = small_recipe(
            tmp_path, learning_rate=0.0, num_mini_batches=changes.pop("num_mini_batches", 1), **changes
        )
        _, rollout, scores = play(recipe)
        metrics = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)[0].by_name
        found.append({
            name: float(metrics[name].sum / metrics[name].count)
            for name in ("loss/policy_avg", "loss/value_avg", "policy/entropy_avg", "val/ratio", "policy/approxkl_avg")
        })  # fmt: skip
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def test_loss_of_whitened_advantages_is_zero_at_first_10_9(tmp_path):
    recipe = small_recipe(tmp_path, num_ppo_epochs=1, dtype=torch.float64)
    _, rollout, scores = play(recipe)
    metrics = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)[0].by_name
    assert abs(float(metrics["loss/policy_avg"].sum)) < 1e-5


@pytest.mark.parametrize(
    ("what", "named"),
    [slow(("advantages", "advantages")), slow(("returns", "returns")), ("old_logprobs", "log-probs at sampling")],
)
def test_a_step_whose_gradient_is_not_finite_is_left_out(tmp_path, what, named):
    recipe = small_recipe(tmp_path)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    update(experience, recipe.schedule.phases(1), recipe)  # optimizers have moments now
    values = vars(experience)[what].clone()
    values[3] = torch.nan
    broken = dataclasses.replace(experience, **{what: values})
    learners = recipe.learners
    before = copy.deepcopy([learners.policy.optimizer.state_dict(), learners.critic.optimizer.state_dict()])
    weights = copy.deepcopy(recipe.models.policy.model.state_dict())
    with pytest.warns(UserWarning, match=f"update 1: an optimizer step is left out.* Not finite here: {named}"):
        metrics, steps = update(broken, recipe.schedule.phases(1), recipe)
    assert (steps.policy, steps.critic, steps.skipped) == (0, 0, 2)
    assert metrics.numbers() == {}
    assert all(torch.equal(now, weights[name]) for name, now in recipe.models.policy.model.state_dict().items())
    for state, learner in zip(before, (learners.policy, learners.critic), strict=True):
        torch.testing.assert_close(learner.optimizer.state_dict(), state, rtol=0, atol=0)


def test_three_broken_updates_in_a_row_end_the_run(tmp_path):
    recipe = small_recipe(tmp_path)
    state, limit = State(), recipe.config.max_broken_updates
    assert limit == 3
    for skipped in (2, 1, 0, 1, 1):
        state.begin_update()
        state.end_update(recipe.batch, Steps(policy=1, skipped=skipped), limit)
    state.begin_update()
    with pytest.raises(TrainingError, match="update 6: the gradient was not finite in 3 updates in a row"):
        state.end_update(recipe.batch, Steps(skipped=2), limit)


def test_scores_that_are_all_alike_are_told_of_once(tmp_path):
    recipe, state = small_recipe(tmp_path), State()
    alike, apart = Scores(torch.ones(4)), Scores(torch.tensor([1.0, 1.0, 1.0, 1.5]))
    for scores in [alike] * 4 + [apart] + [alike] * 4:
        state.watch_spread(scores, recipe.backend)
    with pytest.warns(UserWarning, match="all scores of the last 5 updates were alike"):
        state.watch_spread(alike, recipe.backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state.watch_spread(alike, recipe.backend)


def without_actions(rows):
    """Rows in which the policy chose nothing."""
    return Rollout(
        tokens=torch.tensor([5, 6] * rows), is_action=torch.zeros(2 * rows, dtype=torch.bool),
        row_lengths=torch.full((rows,), 2), logprobs=torch.zeros(0),
        finished=torch.zeros(rows, dtype=torch.bool), policy_version=torch.ones(rows, dtype=torch.long),
    )  # fmt: skip


def test_rows_without_actions_train_nothing_and_break_nothing_d14(tmp_path):
    recipe = small_recipe(tmp_path, weight_decay=0.0)
    experience = make_experience(without_actions(4), Scores(torch.ones(4)), recipe)
    before = copy.deepcopy(recipe.models.policy.model.state_dict())
    of_update, _ = update(experience, recipe.schedule.phases(1), recipe)
    metrics = describe(experience, Scores(torch.ones(4)), recipe) + of_update
    assert all(torch.equal(now, before[name]) for name, now in recipe.models.policy.model.state_dict().items())
    assert float(metrics.by_name["loss/policy_avg"].count) == 0


def test_vf_coef_scales_the_gradient_of_the_critic_and_not_of_the_policy(tmp_path):
    norms = []
    for vf_coef in (0.1, 0.3):
        recipe = small_recipe(tmp_path, dtype=torch.float64, vf_coef=vf_coef, max_grad_norm=None)
        _, rollout, scores = play(recipe)
        experience = make_experience(rollout, scores, recipe)
        metrics = improve(experience, recipe.schedule.phases(1)[0], recipe, first=True)[0].by_name
        norms.append([float(metrics[f"{network}/grad_norm"].sum) for network in ("policy", "value")])
    assert norms[1] == pytest.approx([norms[0][0], 3 * norms[0][1]])


def test_the_value_loss_is_a_mean_over_states(tmp_path):
    """One more state in the denominator for every row whose score is paid after its stop token."""
    recipe = small_recipe(
        tmp_path, dtype=torch.float64, score_position="after_eos", stop_token_id=tuple(range(0, 258, 2)), vf_coef=1.0,
        max_grad_norm=None, optim="sgd", learning_rate=1.0,
    )  # fmt: skip
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    finals = int(experience.train_final.sum())
    assert finals > 0
    head = recipe.models.critic.head
    before = head.weight.detach().clone()
    states = row_states(recipe.models.critic, rollout.tokens, rollout.row_lengths).detach()
    places = torch.cat([rollout.action_positions - 1, rollout.last_positions[experience.train_final]])
    targets = torch.cat([experience.returns, experience.final_returns[experience.train_final]])
    improve(experience, recipe.schedule.phases(1)[0], recipe, first=True)
    step = -(0 - targets) @ states[places] / (len(experience.returns) + finals)
    torch.testing.assert_close(head.weight[0] - before[0], step.to(head.weight.dtype), atol=1e-9, rtol=1e-6)


def test_no_gradient_takes_memory_after_an_update(tmp_path):
    recipe = small_recipe(tmp_path)
    _, rollout, scores = play(recipe)
    update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    networks = (recipe.models.policy.model, recipe.models.critic.model)
    assert [
        parameter.grad for network in networks for parameter in network.parameters() if parameter.grad is not None
    ] == []


@pytest.mark.parametrize(("optim", "fused"), [("adamw_torch_fused", True), ("adamw_torch", None)])
def test_the_fused_optimizer_is_the_one_that_is_named(tmp_path, optim, fused):
    optimizer = small_recipe(tmp_path, optim=optim).learners.policy.optimizer
    assert optimizer.param_groups[0]["fused"] is fused
