"""Several critics: who learns from which rows, what their mean and their disagreement do, and how they are saved."""

import warnings
from dataclasses import replace

import pytest
import torch

from nearstep import ConfigError, PPOConfig
from nearstep.algorithm.agreement import MemberValues, disagreement, highest, lowest
from nearstep.algorithm.several_outputs import EnsembleHead
from nearstep.algorithm.value_heads import LinearHead
from nearstep.models.forward.forward import StateOutputs, rollout_outputs, rollout_values
from nearstep.reports.run_folder import RunFolder
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.objectives import Divisors, losses, shares, value_objective
from nearstep.training.schedules import Phase
from nearstep.training.state import State
from nearstep.training.update import divisors_of
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of
from tests.tiny import tiny_scalar_model
from tests.training.runs import play, small_recipe

TWO = {"critic_models": 2, "num_generations": 4}
ALONE = Phase(1, 1, policy=False, critic=True)


def floats(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def parted(recipe):
    """The recipe, its critics moved apart."""
    with torch.no_grad():
        for number, member in enumerate(recipe.models.critic.members):
            draws = torch.Generator().manual_seed(number)
            for weight in member.model.parameters():
                weight.add_(torch.randn(weight.shape, generator=draws, dtype=weight.dtype) / 10)
    return recipe


def test_a_share_holds_at_most_that_many_and_no_ties():
    numbers = floats(3, 1, 2, 1, 5, 4, 7, 6, 9, 8)
    assert lowest(numbers, numbers, 0.3).tolist() == [False, True, True, True, *[False] * 6]
    assert not lowest(numbers, numbers, 0.1).any()  # one place, and two that are alike
    assert highest(numbers, numbers, 0.2).nonzero().flatten().tolist() == [8, 9]
    assert not lowest(torch.zeros(5), torch.zeros(5), 0.8).any()
    assert not lowest(numbers, numbers, 0.09).any()
    assert int(lowest(floats(*range(100)), floats(*range(100)), 0.29).sum()) == 29
    # The border is that of all processes.
    assert lowest(numbers[:3], numbers, 0.3).tolist() == [False, True, True]
    assert lowest(numbers[:0], numbers, 0.4).tolist() == []


def test_members_of_rows_by_hand():
    by_member = floats(1, 3, 2, 2, 0, 4).reshape(3, 2)
    found = MemberValues.of(by_member, floats(5, 6, 7, 8).reshape(2, 2), torch.tensor([3, 0]), torch.tensor([2, 1]))
    assert found.own.tolist() == [3, 2, 0]  # response 3 belongs to the second member, response 0 to the first
    assert found.final_own.tolist() == [6, 7]
    assert found.disagreement.tolist() == [1, 0, 2]
    assert found.select(torch.tensor([1]), torch.tensor([2])).own.tolist() == [0]
    third = torch.tensor([[0.1, 0.1, 0.1]])
    assert disagreement(third).tolist() == [0]  # in float32 their mean is another number


def test_the_value_is_the_mean_and_each_learns_from_its_own_responses(tmp_path):
    recipe = parted(small_recipe(tmp_path, **TWO, dtype=torch.float64))
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    each = [rollout_values(member, rollout) for member in recipe.models.critic.members]
    torch.testing.assert_close(experience.values, (each[0].before_actions + each[1].before_actions) / 2)
    gap = (each[0].before_actions - each[1].before_actions).abs() / 2
    torch.testing.assert_close(experience.members.disagreement, gap)
    assert float(gap.detach().min()) > 0
    assert experience.sample_numbers.tolist() == [0, 1, 2, 3] * 2
    mine = dict(
        zip((0, 1), (rows.sample_numbers.tolist() for _, rows in shares(experience, recipe.models.critic)), strict=True)
    )
    assert mine == {0: [0, 2, 0, 2], 1: [1, 3, 1, 3]}

    divisors = divisors_of(experience, recipe.loss_aggregation, recipe.backend)
    found = gradients(experience, divisors, recipe)
    states = len(experience.values)
    for number, member in enumerate(recipe.models.critic.members):
        rows = experience.select((experience.sample_numbers % 2 == number).nonzero().squeeze(-1))
        weights = [weight for weight in member.model.parameters() if weight.requires_grad]
        outputs = rollout_outputs(member, rows.rollout).before_actions.squeeze(-1)
        old = each[number].before_actions[experience.of_actions(experience.sample_numbers % 2) == number]
        clipped = old + (outputs - old).clamp(-0.2, 0.2)
        loss = torch.maximum((outputs - rows.returns) ** 2, (clipped - rows.returns) ** 2).sum() / 2 / states
        by_hand = torch.autograd.grad(loss, weights, allow_unused=True)
        for one, other in zip(found[number], by_hand, strict=True):
            torch.testing.assert_close(one, other)
    # No split into micro-batches changes a gradient, though some of them have rows of one critic alone.
    split = gradients(experience, divisors, recipe, rows=1)
    for one, other in zip(found[0] + found[1], split[0] + split[1], strict=True):
        torch.testing.assert_close(one, other)


def gradients(experience, divisors: Divisors, recipe, rows=100):
    """Of every weight of every critic, from micro-batches of so many rows."""
    recipe.models.critic.model.zero_grad()
    for micro in experience.split(10_000, rows):
        for loss, _ in losses(micro, ALONE, divisors, recipe, first=False):
            loss.backward()
    members = recipe.models.critic.members
    return [[weight.grad for weight in member.model.parameters() if weight.requires_grad] for member in members]


def test_a_value_is_clipped_round_what_its_own_critic_said(tmp_path):
    """The mean of both is 0.5: round it, a critic that says 0.9 and should say 1 would learn nothing."""
    recipe = small_recipe(tmp_path, **TWO)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    one = torch.ones_like(experience.values)
    members = replace(experience.members, own=0.9 * one, final_own=torch.full((8,), 0.9))
    experience = replace(experience, values=0.5 * one, returns=one, members=members)
    outputs = (0.9 * one[:, None]).requires_grad_()
    loss, _ = value_objective(experience, StateOutputs(outputs, torch.zeros(8, 1)), LinearHead(0.2))
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.full_like(outputs, -0.1))


def test_masks_leave_out_what_they_say(tmp_path):
    masks = {"advantage_mask_share": 0.25, "entropy_mask_share": 0.5, "entropy_coef": 0.1}
    plain = parted(small_recipe(tmp_path / "a", **TWO, entropy_coef=0.1))
    recipe = parted(small_recipe(tmp_path / "b", **TWO, **masks))
    _, rollout, scores = play(recipe)
    without, experience = make_experience(rollout, scores, plain), make_experience(rollout, scores, recipe)
    spread = without.members.disagreement
    order, count = spread.argsort(), len(spread)
    agreed, disagreed = order[: count // 4], order[count - count // 2 :]
    expected = without.advantages.clone()
    expected[agreed] = 0
    assert torch.equal(experience.advantages, expected)
    assert torch.equal(experience.raw_advantages, without.raw_advantages)
    assert (experience.members.entropy_weights == 0).nonzero().flatten().tolist() == sorted(disagreed.tolist())
    part = experience.select(torch.tensor([5, 2]))
    assert len(part.members.agreed) == len(part.advantages) == len(part.members.entropy_weights)
    # What entropy adds to the loss comes from the others alone.
    both = Phase(1, 1, policy=True, critic=False)
    divisors = divisors_of(experience, recipe.loss_aggregation, recipe.backend)
    ((found, metrics),) = losses(experience, both, divisors, recipe, first=False)
    no_bonus = replace(experience, members=replace(experience.members, entropy_weights=torch.zeros_like(spread)))
    ((bare, _),) = losses(no_bonus, both, divisors, recipe, first=False)
    ((whole, _),) = losses(replace(experience, members=None), both, divisors, recipe, first=False)
    bare, found, whole = (each.detach() for each in (bare, found, whole))
    assert float(bare) > float(found) > float(whole)
    entropy = metrics.numbers()["policy/entropy_avg"]
    assert float(bare - whole) == pytest.approx(0.1 * entropy, rel=1e-4)


def test_critics_that_begin_alike_mask_nothing_and_then_part(tmp_path):
    recipe = small_recipe(
        tmp_path, **TWO, advantage_mask_share=0.2, entropy_mask_share=0.2, entropy_coef=0.01, total_episodes=24,
    )  # fmt: skip
    assert "There are 2 critics, each trained on other responses" in recipe.introduction
    with recipe.report.reporter as reporter:
        train(recipe, State())
        history = [line for line in reporter.history if "val/disagreement" in line]
    assert history[0]["val/disagreement"] == history[0]["val/advantage_masked"] == 0
    assert history[2]["val/disagreement"] > 0
    assert 0.1 < history[2]["val/advantage_masked"] <= 0.2
    assert 0.1 < history[2]["val/entropy_masked"] <= 0.2


def test_the_heads_of_an_ensemble_disagree_too(tmp_path):
    recipe = parted(small_recipe(tmp_path, value_head="ensemble", num_generations=4, advantage_mask_share=0.2))
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    outputs = rollout_outputs(recipe.models.critic, rollout).before_actions
    torch.testing.assert_close(experience.members.disagreement.float(), (outputs[:, 0] - outputs[:, 1]).abs() / 2)
    assert 4 < int(experience.members.agreed.sum()) <= int(0.2 * len(outputs))  # less where responses begin alike
    assert EnsembleHead(2).by_member(outputs) is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"critic_models": 2}, "critic_models = 2 trains each critic on other responses to every prompt: num_gen"),
        (TWO | {"critic_trunk": "shared"}, "with critic_trunk = shared the critic is made from the policy's weights"),
        (TWO | {"value_head": "ensemble"}, "both make the value a mean of several: give one"),
        (TWO | {"advantage_mask_share": 1.0}, "advantage_mask_share = 1.0 must be at least 0 and below 1"),
    ],
)
def test_what_clashes_is_refused(given, said):
    with pytest.raises(ConfigError) as refused:
        PPOConfig(**given)
    assert said in str(refused.value)


def test_a_bonus_that_is_not_there_cannot_be_masked(tmp_path):
    with pytest.warns(UserWarning, match="entropy_mask_share has no effect without entropy_coef"):
        PPOConfig(**TWO, entropy_mask_share=0.2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PPOConfig(advantage="group_mean", **TWO, advantage_mask_share=0.1)
    idle = [str(each.message).split()[0] for each in told if "has no effect" in str(each.message)]
    assert idle == ["critic_models", "advantage_mask_share"]
    with pytest.raises(ConfigError, match="and value head LinearHead has none: set critic_models = 2"):
        small_recipe(tmp_path, num_generations=4, advantage_mask_share=0.2, parts={"value_head": LinearHead()})
    with pytest.raises(ConfigError, match=r"entropy_mask_share goes by how far .* and value_head = linear has none"):
        small_recipe(tmp_path, num_generations=4, entropy_mask_share=0.2, entropy_coef=0.1)
    given = {"parts": {"value_head": EnsembleHead(2)}, "num_generations": 4, "advantage_mask_share": 0.2}
    assert small_recipe(tmp_path, **given).models.critic.value_head == EnsembleHead(2)


@pytest.mark.slow
def test_critics_go_on_with_the_same_bits_and_their_folders_begin_another_run(tmp_path):
    changed = TWO | {"total_episodes": 16, "advantage_mask_share": 0.2, "vf_frozen": ("*embed_tokens*",)}
    unbroken = trainer_of(tmp_path / "a", **changed)
    unbroken.train()
    expected, written = everything(unbroken), records(tmp_path / "a")
    resumed = trainer_of(tmp_path / "a", **changed)
    resumed.train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-1")
    assert_same_bits(everything(resumed), expected)
    assert records(tmp_path / "a") == written
    assert len({name for name in expected if "score" in name and name.endswith(":weight")}) == 2

    folder = RunFolder(tmp_path / "a").value
    assert sorted(path.name for path in folder.iterdir()) == ["critic_1", "critic_2"]
    again = trainer_of(tmp_path / "b", **TWO, value_model_path=str(folder), total_episodes=8)
    for one, other in zip(unbroken.value_model.parameters(), again.value_model.parameters(), strict=True):
        assert torch.equal(one, other)
    single = trainer_of(tmp_path / "c", value_model_path=str(folder / "critic_2"), total_episodes=8)
    assert torch.equal(next(single.value_model.parameters()), next(unbroken.value_model[1].parameters()))
    with pytest.raises(ConfigError, match=r"holds 2 critics, and the run has critic_models = 1: set critic_models = 2"):
        trainer_of(tmp_path / "d", value_model_path=str(folder), total_episodes=8)


def test_a_smaller_model_may_be_each_critic(tmp_path):
    small = tiny_scalar_model(layers=1)
    recipe = small_recipe(tmp_path, **TWO, parts={"value_model": small})
    first, second = recipe.models.critic.members
    assert first.model is small
    assert second.model is not small
    assert first.trunk is not second.trunk
    assert len(recipe.learners.critic.parameters) == 2 * len(list(small.parameters()))
