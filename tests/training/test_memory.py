"""What takes less memory: a base in 4 bits, moments in a byte, roles on the host while idle, layers recomputed."""

import importlib.util
import json
import shutil
from contextlib import nullcontext

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ConfigError
from nearstep.assembly.offload import frozen_on_host
from nearstep.checkpoint.learner_state import learner_tensors, restore_learner
from nearstep.models.forward.own_pass import Recomputation
from nearstep.models.offload import HOST, Offload, away
from nearstep.rewards.idle import IdleScorer
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.optimizers import make_learner
from nearstep.training.state import State
from nearstep.training.update import update
from tests.lanes import slow
from tests.tiny import tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, settings, small_recipe
from tests.training.test_one_base import BOTH, IDS, learned, recipe_of, scorer_of, world

OTHER = torch.device("cpu", 0)  # not the host by its name: what goes there is copied, as to a GPU
BITS = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'nearstep[quant]'"
)


# --- offload_roles


def places(model):
    return [weight.data_ptr() for weight in model.parameters()]


def test_frozen_weights_are_on_the_device_while_the_role_computes():
    model = tiny_causal_lm(layers=1)
    offload = Offload.of(model, OTHER)
    before, logits = places(model), model(IDS).logits
    with offload.here():
        there = places(model)
        assert not set(there) & set(before)
        assert torch.equal(model(IDS).logits, logits)
        with offload.here():
            assert not set(places(model)) & {*there, *before}
        assert places(model) == there
    assert places(model) == before
    with pytest.raises(KeyboardInterrupt), offload.here():
        raise KeyboardInterrupt
    assert places(model) == before


def test_what_is_shared_with_the_policy_stays(tmp_path):
    recipe = recipe_of(tmp_path, world(tmp_path))
    policy, critic = recipe.models.policy.model, recipe.models.critic.model
    before = places(policy), dict(zip(dict(critic.named_parameters()), places(critic), strict=True))
    with Offload.of(critic, OTHER, beside=policy).here():
        assert places(policy) == before[0]
        moved = {name for name, weight in critic.named_parameters() if weight.data_ptr() != before[1][name]}
    assert moved
    assert all("lora_" in name or "score" in name for name in moved)


def test_the_reference_moves_around_its_passes_and_a_switched_off_one_has_nothing_to_move(tmp_path):
    recipe = small_recipe(tmp_path / "a")
    config = settings(tmp_path / "b", offload_roles=["reference", "teacher"])
    notes: list[str] = []
    models = frozen_on_host(config, recipe.models, OTHER, notes)
    assert notes == ["offload_roles: the teacher has no weights of its own that could be moved."]
    before = places(models.reference.policy.model)
    with models.reference.active() as reference:
        assert not set(places(reference.model)) & set(before)
    assert places(models.reference.policy.model) == before
    adapted = small_recipe(tmp_path / "c", use_peft=True)
    notes = []
    assert frozen_on_host(config, adapted.models, OTHER, notes) == adapted.models
    assert len(notes) == 2


def test_on_the_cpu_nothing_moves_and_the_run_says_so(tmp_path):
    recipe = small_recipe(tmp_path, offload_roles=["reference", "value"])
    assert "offload_roles: this process computes on the CPU" in recipe.introduction
    assert recipe.models.reference.idle == Offload()
    plain = learned(small_recipe(tmp_path / "plain"))[1]
    assert all(torch.equal(weight, plain[name]) for name, weight in learned(recipe)[1].items())


def test_a_reward_model_moves_around_its_scores():
    model = tiny_scalar_model(layers=1)
    before, seen = places(model), []

    class Looks:
        def score(self, rows):
            seen.extend(places(model))
            return torch.zeros(len(rows))

    assert len(IdleScorer(Looks(), Offload.of(model, OTHER)).score([[1], [2]])) == 2
    assert seen
    assert not set(seen) & set(before)
    assert places(model) == before


def test_what_trains_comes_back_as_it_went():
    """Seen by a device that this machine has: a tensor on the host stays, another goes there and comes back."""
    host, other = torch.ones(2), torch.ones(2, device="meta")
    with pytest.raises(NotImplementedError), away([host, other]):  # meta has nothing to bring
        pass
    kept = host.data_ptr()
    with away([host]):
        assert host.device == HOST
    assert host.data_ptr() == kept


@pytest.mark.parametrize("changes", [slow({}), {"dtype": "bfloat16"}])
def test_critic_and_moments_are_away_while_responses_are_generated(tmp_path, monkeypatch, changes):
    """On a fake device: every tensor of the critic is asked to leave, masters and moments too, and nothing else."""
    gone = []
    monkeypatch.setattr("nearstep.training.idle.away", lambda tensors: (gone.append(list(tensors)), nullcontext())[1])
    dtype = torch.bfloat16 if changes else torch.float32
    recipe = small_recipe(tmp_path, dtype=dtype, offload_roles=["value"], total_episodes=16)
    generate, inside = recipe.engine.generate, []
    monkeypatch.setattr(
        type(recipe.engine),
        "generate",
        lambda self, *rest, **named: (inside.append(len(gone)), generate(*rest, **named))[1],
    )
    train(recipe, State())
    learner = recipe.learners.critic
    of_critic = {id(each) for each in (*learner.network.parameters(), *learner.parameters)}
    moments = {id(each) for state in learner.optimizer.state.values() for each in state.values()}
    assert inside == [1, 2]
    assert of_critic <= {id(each) for each in gone[0]}
    assert of_critic | moments <= {id(each) for each in gone[1]}
    policy = {id(each) for each in recipe.models.policy.model.parameters()}
    assert not policy & {id(each) for each in gone[1]}


# --- gradient_checkpointing_every


@pytest.mark.parametrize(("every", "expected"), [(2, [0, 2]), slow((9, [0]))])
def test_every_nth_layer_is_recomputed_and_no_number_changes(tmp_path, every, expected):
    parts = {"model": tiny_causal_lm(layers=3)}
    plain = learned(small_recipe(tmp_path / "plain", parts=parts))[1]
    parts = {"model": tiny_causal_lm(layers=3)}
    recipe = small_recipe(tmp_path, parts=parts, gradient_checkpointing=True, gradient_checkpointing_every=every)
    for model in (recipe.models.policy.model, recipe.models.critic.model):
        layers = model.base_model.layers
        chosen = [
            n
            for n, each in enumerate(layers)
            if isinstance(vars(each).get("_gradient_checkpointing_func"), Recomputation)
        ]
        assert chosen == expected
    calls = []
    layer = recipe.models.policy.model.base_model.layers[0]
    layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = learned(recipe)[1]
    assert all(torch.equal(weight, plain[name]) for name, weight in found.items())


# --- optim = adamw_8bit


def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"optim = adamw_8bit needs the package bitsandbytes.*nearstep\[quant\]"):
        small_recipe(tmp_path, optim="adamw_8bit")


@BITS
def test_an_optimizer_that_cannot_step_here_is_refused_before_training(tmp_path, monkeypatch):
    import bitsandbytes

    def fails(*_, **__):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "update_step", fails)
    with pytest.raises(ConfigError, match=r"bitsandbytes cannot take a step on cpu \(NotImplementedError: no kernel"):
        small_recipe(tmp_path, optim="adamw_8bit")


@BITS
def test_moments_in_bytes_are_smaller_and_the_steps_near(tmp_path):
    whole, bytes_ = (small_recipe(tmp_path / name, optim=name) for name in ("adamw_torch", "adamw_8bit"))
    (_, expected), (_, found) = learned(whole), learned(bytes_)
    gaps = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).abs()
    assert 0 < gaps.mean() < 2e-4  # steps are of 1e-3
    size = {name: sum(t.nbytes for key, t in learner_tensors(recipe.learners.policy).items()
                      if not key.endswith((":weight", ":qmap1", ":qmap2")))
            for name, recipe in {"whole": whole, "bytes": bytes_}.items()}  # fmt: skip
    assert size["bytes"] < 0.7 * size["whole"]  # half the weights lie in tensors of fewer than 4,096, in float32


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_takes_the_same_steps(dtype):
    """Bytes, scales and the count of steps come back; narrow weights step float32 masters as with any optimizer."""
    config = settings("out", optim="adamw_8bit", learning_rate=1e-3)

    def learner(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 3)).to(dtype)
        return make_learner(model, config, 1e-3, 9)

    def step(each, number):
        draws = torch.Generator().manual_seed(number)
        for weight in each.weights:
            weight.grad = torch.randn(weight.shape, generator=draws).to(dtype)
        each.take_gradients()
        each.optimizer.step()

    one = learner(0)
    assert bool(one.masters.masters) == (dtype == torch.bfloat16)
    for number in range(3):
        step(one, number)
    kept = {name: tensor.clone() for name, tensor in learner_tensors(one).items()}
    assert kept["0.weight:state1"].dtype == torch.uint8
    assert kept["1.weight:state1"].dtype == torch.float32
    assert int(kept["0.weight:step"]) == 3
    two = learner(1)
    restore_learner(two, kept, "here")
    for each in (one, two):
        step(each, 7)
    assert all(torch.equal(t, learner_tensors(two)[name]) for name, t in learner_tensors(one).items())


@pytest.mark.slow
@BITS
def test_a_run_with_bytes_goes_on_from_its_checkpoint(tmp_path):
    through = small_recipe(tmp_path / "a", optim="adamw_8bit", save_steps=1)
    train(through, State())
    before = small_recipe(tmp_path / "b", optim="adamw_8bit", save_steps=1, total_episodes=16)
    train(before, State())
    before.checkpoint.close()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    after = small_recipe(tmp_path / "c", optim="adamw_8bit", save_steps=1, resume="auto")
    train(after, State())
    ends = (learner_tensors(recipe.learners.policy) for recipe in (through, after))
    one, two = ends
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


# --- load_in_4bit


@BITS
@pytest.mark.parametrize(("kind", "changes"), [
    slow(
        ("llama", {"use_bnb_nested_quant": True, "lora_target_modules": ["all-linear"], "gradient_checkpointing": True})
    ),
    ("gpt_neox", {"bnb_4bit_quant_type": "fp4", "lora_target_modules": ["query_key_value"], "dtype": "bfloat16"}),
])  # fmt: skip
def test_four_roles_on_one_base_in_4_bits(tmp_path, kind, changes):
    recipe = recipe_of(tmp_path / "out", world(tmp_path, kind), load_in_4bit=True, learning_rate=1e-2, **changes)
    policy, critic, reward = recipe.models.policy.model, recipe.models.critic.model, scorer_of(recipe).model
    packed = {weight.data_ptr() for weight in policy.parameters() if weight.dtype == torch.uint8}
    assert packed
    for model in (critic, reward):
        assert {weight.data_ptr() for weight in model.parameters() if weight.dtype == torch.uint8} == packed
    assert recipe.models.reference.adapters_off
    start = policy(IDS).logits.detach()
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl"]) < (1e-2 if "dtype" in changes else 1e-4)  # bfloat16: sampling rounds otherwise
    with torch.no_grad():
        ends = policy(IDS).logits
        assert not torch.allclose(ends, start, atol=1e-3)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")
        assert "quantization_config" not in whole.config.to_dict()
        close = {"atol": 0.2, "rtol": 0.1} if "dtype" in changes else {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(whole(IDS).logits.float(), ends.float(), **close)
        value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "value")
        torch.testing.assert_close(value(IDS).logits.float(), critic(IDS).logits.float(), **close)
    peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "policy_adapter")


@BITS
@pytest.mark.parametrize(("changes", "words"), [
    ({"use_peft": False, "critic_trunk": "shared", "reward_trunk": "separate"}, "keeps weights that cannot learn"),
    ({"model_name_or_path": "out/policy_adapter"}, "keeps weights that nothing can be merged into"),
])  # fmt: skip
def test_4_bits_that_cannot_be_are_refused(tmp_path, changes, words):
    top = world(tmp_path)
    if "model_name_or_path" in changes:
        model = peft.get_peft_model(tiny_causal_lm(), peft.LoraConfig(task_type="CAUSAL_LM"))
        model.save_pretrained(tmp_path / "adapters")
        file = tmp_path / "adapters" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(top / "base")}))
        changes = {"model_name_or_path": str(tmp_path / "adapters")}
    with pytest.raises(ConfigError, match=words):
        recipe_of(tmp_path / "run", top, load_in_4bit=True, **changes)


@BITS
def test_a_critic_of_its_own_starts_from_the_base_in_full(tmp_path):
    recipe = recipe_of(tmp_path / "out", world(tmp_path), load_in_4bit=True, critic_trunk="separate")
    assert {weight.dtype for weight in recipe.models.critic.model.parameters()} == {torch.float32}
    _, rollout, scores = play(recipe)
    update(make_experience(rollout, scores, recipe), BOTH, recipe)
