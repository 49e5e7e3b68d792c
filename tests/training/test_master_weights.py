"""Weights narrower than float32: their masters learn as float32 weights do, they follow rounded, nothing is lost."""

import copy
import io
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.config.ppo import PPOConfig
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.optimizers import make_learner
from nearstep.training.schedules import Phase
from nearstep.training.state import State
from nearstep.training.update import improve, update
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import low_ids, play, settings, small_recipe

BOTH = Phase(1, 1, policy=True, critic=True)
DEFAULT_RATE = 3e-6


def layer(*weights: float, dtype=torch.bfloat16) -> nn.Linear:
    """One row of weights."""
    made = nn.Linear(len(weights), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([weights]))
    return made


def learner_of(model: nn.Module, updates: int = 10, **changes):
    config = PPOConfig(**{"learning_rate": 1e-3, "lr_scheduler_type": "constant", **changes})
    return make_learner(model, config, config.learning_rate, updates)


def step(model: nn.Linear, learner, *gradient: float) -> None:
    """One optimizer step with a gradient that bfloat16 holds exactly."""
    learner.free_gradients()
    (model.weight * torch.tensor([gradient], dtype=model.weight.dtype)).sum().backward()
    learner.take_gradients()
    learner.optimizer.step()


def moments(learner) -> list[torch.Tensor]:
    return [of[name] for of in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def test_small_steps_add_up_by_hand():
    """Below 1 the next bfloat16 number is 1 - 1/256: a step of 1/1024 is rounded away, the third is not."""
    model = layer(1.0)
    learner = learner_of(model, optim="sgd", learning_rate=1 / 1024)
    seen = []
    for _ in range(4):
        step(model, learner, 1.0)
        seen.append((learner.parameters[0].item(), model.weight.item()))
    assert [master for master, _ in seen] == [1 - n / 1024 for n in (1, 2, 3, 4)]
    assert [weight for _, weight in seen] == [1.0, 1.0, 1 - 1 / 256, 1 - 1 / 256]  # halfway goes to the even one, 1


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_masters_are_what_float32_weights_would_be(optim):
    """Bit for bit, where bfloat16 holds start and gradients: Adam's moments and weight decay are in float32."""
    start = (0.5, -0.02, 3.0, 1e-3)
    narrow, wide = layer(*start), layer(*start)
    wide.to(torch.float32)
    options = {"optim": optim, "learning_rate": DEFAULT_RATE, "weight_decay": 0.1}
    learners = learner_of(narrow, **options), learner_of(wide, **options)
    for number in range(1, 30):
        gradient = (0.5, -0.25 * (number % 3), 2.0**-20, 1.0)
        step(narrow, learners[0], *gradient)
        step(wide, learners[1], *gradient)
    (master,) = learners[0].parameters
    assert torch.equal(master, wide.weight)
    assert torch.equal(narrow.weight, master.bfloat16())
    assert [moment.dtype for moment in moments(learners[0])] == [torch.float32, torch.float32]
    assert not torch.equal(narrow.weight.float(), master)


def test_gradients_add_up_in_float32():
    """To a gradient of 1 bfloat16 cannot add 1/512, however often."""
    model = layer(1.0)
    learner = learner_of(model)
    for gradient in (1.0, *[1 / 512] * 512):
        (model.weight * gradient).sum().backward()
        learner.take_gradients()
    assert learner.parameters[0].grad.item() == 2.0
    assert model.weight.grad is None
    learner.free_gradients()
    assert learner.parameters[0].grad is None


def test_a_gradient_that_nobody_took_is_taken_by_the_step():
    model = layer(1.0)
    learner = learner_of(model, optim="sgd", learning_rate=0.5)
    model.weight.sum().backward()
    learner.optimizer.step()
    assert model.weight.item() == 0.5
    learner.optimizer.step()  # the gradient is used up
    assert model.weight.item() == 0.5


def test_weights_that_somebody_else_sets_are_the_masters_start():
    model = layer(1.0, 2.0)
    learner = learner_of(model, optim="sgd", learning_rate=1 / 1024)
    step(model, learner, 1.0, 1.0)
    model.load_state_dict({"weight": torch.tensor([[1.0, 4.0]])})
    step(model, learner, 1.0, 1.0)
    assert learner.parameters[0].tolist() == [[1 - 2 / 1024, 4 - 1 / 1024]]  # the first was left as it was


def test_the_learning_rate_follows_its_schedule():
    model = layer(1.0)
    learner = learner_of(model, updates=4, optim="sgd", learning_rate=1 / 1024, lr_scheduler_type="linear")
    places = [1.0]
    for _ in range(4):
        step(model, learner, 1.0)
        learner.schedule.step()
        places.append(learner.parameters[0].item())
    steps = [(before - after) * 1024 for before, after in pairwise(places)]
    assert steps == [1.0, 0.75, 0.5, 0.25]


def test_a_saved_state_goes_on_bit_for_bit():
    model = layer(0.5, -0.02, 3.0)
    learner = learner_of(model)
    for _ in range(3):
        step(model, learner, 1.0, -0.5, 0.25)
    file = io.BytesIO()
    torch.save(learner.optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = layer(0.0, 0.0, 0.0)
    second = learner_of(resumed)
    second.optimizer.load_state_dict(saved)
    assert torch.equal(resumed.weight, model.weight)
    for _ in range(3):
        step(model, learner, 1.0, 0.5, 0.25)
        step(resumed, second, 1.0, 0.5, 0.25)
    assert torch.equal(second.parameters[0], learner.parameters[0])
    assert torch.equal(resumed.weight, model.weight)
    assert all(torch.equal(one, two) for one, two in zip(moments(learner), moments(second), strict=True))
    with pytest.raises(ValueError, match="of another model"):
        learner_of(layer(0.0)).optimizer.load_state_dict(saved)


def test_float32_weights_have_no_masters():
    model = nn.Sequential(layer(1.0, dtype=torch.float32), layer(1.0), layer(1.0, dtype=torch.float64))
    learner = learner_of(model)
    assert [own is weight for own, weight in zip(learner.parameters, model.parameters(), strict=True)] == [
        True, False, True,
    ]  # fmt: skip


def start() -> nn.Module:
    return tiny_causal_lm(layers=1, dtype=torch.bfloat16)


def move(folder, experience, model, steps=20, **changes):
    """The policy's losses over some steps on one experience, and how far the weights that learn have moved."""
    recipe = small_recipe(folder, parts={"model": model}, trust_region="unbounded", **changes)
    before = [weight.detach().clone() for weight in recipe.learners.policy.parameters]
    metrics = [improve(experience, BOTH, recipe, first=False)[0].by_name for _ in range(steps)]
    assert all(of_step["policy/grad_norm"].sum > 0 for of_step in metrics)  # masters have gradients when they are cut
    losses = [of_step["loss/policy_avg"] for of_step in metrics]
    moved = torch.cat([
        (now.detach() - then).float().flatten()
        for now, then in zip(recipe.learners.policy.parameters, before, strict=True)
    ])  # fmt: skip
    return torch.stack([loss.sum / loss.count for loss in losses]), moved, recipe


@pytest.fixture(scope="module")
def float32_run(tmp_path_factory):
    """An experience, and how far it moves a float32 policy with the same weights at the default rate."""
    folder = tmp_path_factory.mktemp("float32")
    recipe = small_recipe(folder, parts={"model": start().float()})
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    return experience, move(folder, experience, start().float(), learning_rate=DEFAULT_RATE)[1]


def test_a_bfloat16_policy_learns_as_a_float32_one_does(tmp_path, float32_run):
    experience, moved = float32_run
    _, narrow_moved, recipe = move(tmp_path, experience, start(), learning_rate=DEFAULT_RATE)
    touched = moved != 0
    assert touched.float().mean() > 0.7  # the others are embeddings of tokens that nobody wrote
    assert (narrow_moved[touched] != 0).float().mean() > 0.999
    assert torch.cosine_similarity(narrow_moved, moved, dim=0) > 0.99
    for weight, master in zip(recipe.models.policy.model.parameters(), recipe.learners.policy.parameters, strict=True):
        assert torch.equal(weight, master.bfloat16())
    assert "float32 masters" in recipe.introduction


@pytest.mark.slow
def test_the_loss_falls_as_it_does_in_float32(tmp_path, float32_run):
    """At a rate at which twenty steps are larger than the distance of bfloat16 numbers for many weights."""
    experience, _ = float32_run
    wide, narrow = (
        move(tmp_path, experience, model, learning_rate=3e-5)[0] for model in (start().float(), start())
    )  # fmt: skip
    assert wide[-1] < -0.1
    assert (narrow - wide).abs().max() < 0.2 * wide[-1].abs()


def test_without_masters_nothing_moves_and_the_user_is_told(tmp_path, float32_run):
    experience, moved = float32_run
    with pytest.warns(UserWarning, match=r"smaller than 1/512 of a weight is lost.*learning_rate = 3e-06"):
        _, narrow_moved, recipe = move(
            tmp_path, experience, start(), learning_rate=DEFAULT_RATE, master_weights=False
        )  # fmt: skip
    assert (narrow_moved == 0).float().mean() > 0.99
    assert torch.cosine_similarity(narrow_moved, moved, dim=0) < 0.2
    assert "float32 masters" not in recipe.introduction


def test_float16_objects_are_trained_in_float32(tmp_path):
    """Policy, critic, and a critic that starts from a float16 reward model, which a CPU reads in float32 itself."""
    policy = tiny_causal_lm(layers=1, dtype=torch.float16)
    judge = tiny_scalar_model(layers=1, dtype=torch.float16)
    before = {name: weight.detach().float().clone() for name, weight in policy.named_parameters()}
    parts = {"model": policy, "reward_model": judge, "reward_funcs": ()}
    recipe = small_recipe(tmp_path, parts=parts, learning_rate=DEFAULT_RATE)
    for role in ("model", "value_model"):
        assert f"{role}: float16 weights are trained and saved in float32" in recipe.introduction
    train(recipe, State())
    moved = torch.cat([(weight - before[name]).abs().flatten() for name, weight in policy.named_parameters()])
    assert 0 < moved.max() <= 1.1 * 6 * DEFAULT_RATE  # three updates of two epochs
    assert (moved > 0).float().mean() > 0.7
    assert recipe.models.critic.model.dtype == torch.float32
    assert judge.dtype == torch.float32
    assert "reward_model: float16 weights are read in float32" in recipe.introduction


@pytest.mark.parametrize("changes", [slow({"critic_trunk": "shared"}), {"critic": "decoupled", "num_vf_epochs": 1}])
def test_policy_and_critic_have_masters_of_their_own(tmp_path, changes):
    """Also a head on the policy's trunk, and a critic with phases of its own."""
    recipe = small_recipe(tmp_path, parts={"model": start()}, **changes)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    policy, critic = recipe.learners.policy, recipe.learners.critic
    own = {id(weight) for weight in policy.masters.narrow}
    assert not own & {id(weight) for weight in critic.masters.narrow}
    then = [weight.clone() for weight in policy.parameters]
    update(experience, [Phase(1, 2, policy=False, critic=True)], recipe)
    assert all(torch.equal(now, before) for now, before in zip(policy.parameters, then, strict=True))
    update(experience, [Phase(1, 2, policy=True, critic="critic_trunk" in changes)], recipe)
    for learner in (policy, critic):
        state = learner.optimizer.state_dict()
        assert len(state["state"]) == len(state["master_weights"]) == len(learner.parameters)
        assert all(moment.dtype == torch.float32 for moment in moments(learner))
        assert all(weight.grad is None for weight in (*learner.parameters, *learner.masters.narrow))
        for weight, master in zip(learner.masters.narrow, learner.parameters, strict=True):
            assert torch.equal(weight, master.bfloat16())
            assert not torch.equal(weight.float(), master)


@pytest.mark.slow
def test_adapters_have_masters_only_where_they_are_narrow(tmp_path):
    """peft makes fresh adapters float32; a user's may be what they like. The frozen base has none."""
    peft = pytest.importorskip("peft")
    lora = {"use_peft": True, "lora_target_modules": ("q_proj",), "advantage": "leave_one_out", "num_generations": 4}
    fresh = small_recipe(tmp_path, parts={"model": start()}, **lora)
    assert fresh.learners.policy.masters.masters == []
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    given = peft.get_peft_model(start(), config, autocast_adapter_dtype=False)
    recipe = small_recipe(tmp_path, parts={"model": given}, advantage="leave_one_out", num_generations=4)
    assert len(recipe.learners.policy.masters.masters) == 2
    frozen = copy.deepcopy(given.get_base_model().model.embed_tokens.weight)
    train(recipe, State())
    assert torch.equal(frozen, given.get_base_model().model.embed_tokens.weight)
    assert all(weight.dtype == torch.bfloat16 for weight in given.parameters())


@pytest.mark.slow
def test_folders_hold_the_weights_in_their_own_type(tmp_path):
    recipe = small_recipe(tmp_path, parts={"model": start()}, total_episodes=8, log_rollouts=False)
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype="auto")
    assert saved.dtype == torch.bfloat16
    for name, weight in recipe.models.policy.model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name


def test_nothing_is_warned_of_where_weights_are_wide():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner_of(layer(1.0, dtype=torch.float32), master_weights=False)


@pytest.mark.parametrize(("dtype", "is_told"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_type_for_folders_that_an_object_does_not_have_is_told(tmp_path, dtype, is_told):
    inputs = RunInputs(
        tokenizer=byte_tokenizer(), model=tiny_causal_lm(layers=1, dtype=dtype), reward_funcs=(low_ids,),
        train_dataset=[{"prompt": "Hi"}],
    )  # fmt: skip
    told = assemble(settings(tmp_path, dtype="bfloat16"), inputs).introduction
    assert ("dtype = bfloat16 is for folders: model was passed as an object" in told) == is_told
