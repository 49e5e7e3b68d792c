"""A critic's head on its way: how its layer starts, what its folder remembers, and what is refused."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from nearstep.algorithm.several_outputs import EnsembleHead, QuantileHead
from nearstep.algorithm.value_heads import BoundedHead, HLGaussHead, LinearHead
from nearstep.common.errors import ModelError
from nearstep.models.forward.forward import rollout_outputs, rollout_values
from nearstep.models.frozen_weights import freeze
from nearstep.models.head_bias import add_bias, store_bias, stored_bias
from nearstep.models.load import critic_from_trunk, load_scalar_model, with_value_head
from nearstep.models.output_layers import linear_head
from nearstep.models.roles import make_critic
from nearstep.models.stored_head import remember_head, stored_head
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.objectives import value_objective
from nearstep.training.state import State
from tests.models.test_forward import ROWS, rollout_of
from tests.tiny import tiny_causal_lm, tiny_config, tiny_scalar_model
from tests.training.runs import play, small_recipe

RANGE = {"value_min": -1.0, "value_max": 2.0, "kl_coef": 0.0}
BOUNDED, HL_GAUSS = BoundedHead(-1.0, 2.0), HLGaussHead(-1.0, 2.0)
LORA = {"use_peft": True, "lora_target_modules": ("q_proj", "v_proj")}


def trained(recipe):
    state = State()
    with recipe.report.reporter:
        train(recipe, state)
        recipe.checkpoint.save_final(state)
    return recipe.models.critic


@pytest.mark.parametrize(
    ("head", "kind", "changes"),
    [
        ("hl_gauss", "gpt2", RANGE),
        pytest.param("bounded", "llama", RANGE | {"critic_trunk": "shared"}, marks=pytest.mark.slow),
        pytest.param("bce", "gpt_neox", RANGE | {"dtype": torch.bfloat16}, marks=pytest.mark.slow),
        ("quantile", "llama", {"critic_trunk": "adapter", **LORA}),
        pytest.param(
            "quantile", "llama", {"critic_trunk": "shared", "value_quantiles": 3, **LORA}, marks=pytest.mark.slow
        ),
        pytest.param("ensemble", "gpt2", {"num_generations": 4, "value_members": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_saved_critic_opens_as_it_was(head, kind, changes, tmp_path):
    dtype = changes.get("dtype", torch.float32)
    recipe = small_recipe(
        tmp_path, parts={"model": tiny_causal_lm(kind, dtype=dtype)}, total_episodes=16, learning_rate=1e-2,
        value_head=head, **{name: value for name, value in changes.items() if name != "dtype"},
    )  # fmt: skip
    rollout = play(recipe)[1]
    middle = 0.5 if head in ("hl_gauss", "bounded", "bce") else 0.0
    assert (rollout_values(recipe.models.critic, rollout).before_actions - middle).abs().max() < 1e-5
    critic = trained(recipe)
    values = rollout_values(critic, rollout).before_actions.detach()
    assert (values - middle).abs().max() > 1e-3
    again = load_scalar_model(
        str(tmp_path / "value"), role="value_model", dtype=torch.float32, value_head=critic.value_head
    )
    found = rollout_values(make_critic(again, value_head=critic.value_head), rollout).before_actions
    torch.testing.assert_close(found, values, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-3)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value", dtype=torch.float32)
    assert plain.num_labels == critic.value_head.outputs
    assert torch.equal(plain.score.weight, again.score.weight)
    assert type(critic.value_head).__name__ in (tmp_path / "value" / "README.md").read_text()


def test_a_linear_critics_folder_says_nothing_of_a_head(tmp_path):
    trained(small_recipe(tmp_path, total_episodes=8))
    assert "value_head" not in json.loads((tmp_path / "value" / "config.json").read_text())
    assert "outputs mean" not in (tmp_path / "value" / "README.md").read_text()


def saved(tmp_path, head) -> str:
    model = with_value_head(tiny_scalar_model(), head, at_zero=True)
    model.save_pretrained(tmp_path / "value")
    return str(tmp_path / "value")


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [
        (
            BOUNDED,
            LinearHead(),
            r"outputs are no values by themselves: it was saved with BoundedHead\(high=2.0, low=-1.0",
        ),
        (LinearHead(), BOUNDED, r"saved without a value_head, so its output is the value, and this run .* BoundedHead"),
        (
            BOUNDED,
            BoundedHead(0.0, 2.0),
            r"saved with BoundedHead\(high=2.0, low=-1.0.*reads its outputs with BoundedHead\(high=2.0, low=0.0",
        ),
        (HL_GAUSS, QuantileHead(51), r"saved with HLGaussHead.* leave value_model out"),
        (EnsembleHead(2), EnsembleHead(3), r"saved with EnsembleHead\(members=2\)"),
    ],
)
def test_another_head_than_the_saved_one_is_refused(stored, wanted, said, tmp_path):
    place = saved(tmp_path, stored)
    with pytest.raises(ModelError, match=said):
        load_scalar_model(place, role="value_model", dtype=torch.float32, value_head=wanted)
    model = AutoModelForSequenceClassification.from_pretrained(place)
    with pytest.raises(ModelError, match=said):
        make_critic(model, value_head=wanted)
    assert load_scalar_model(place, role="value_model", dtype=torch.float32, value_head=stored).num_labels > 0


def test_a_critic_with_a_head_is_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match=r"reward_model: the model in .* is a critic whose outputs are no values"):
        load_scalar_model(saved(tmp_path, BOUNDED), role="reward_model", dtype=torch.float32)


def test_a_run_takes_up_the_critic_of_another_with_the_same_head(tmp_path):
    place = saved(tmp_path, QuantileHead(8))
    recipe = small_recipe(tmp_path / "run", value_head="quantile", value_quantiles=8, value_model_path=place)
    assert recipe.models.critic.head.out_features == 8
    with pytest.raises(ModelError, match="saved with QuantileHead"):
        small_recipe(tmp_path / "run", value_head="quantile", value_model_path=place)


def test_a_head_that_begins_at_zero_keeps_the_reward_models_trunk_alone(tmp_path):
    scorer = tiny_scalar_model()
    add_bias(scorer, scorer.score)
    parts = {"reward_model": scorer, "reward_funcs": ()}
    critic = small_recipe(tmp_path, parts=parts, value_head="hl_gauss", **RANGE).models.critic
    assert critic.head.weight.abs().max() == 0
    assert stored_bias(critic.model.config) is None
    assert torch.equal(critic.model.model.layers[0].mlp.up_proj.weight, scorer.model.layers[0].mlp.up_proj.weight)
    assert stored_head(scorer.config) is None


def test_every_member_of_an_ensemble_begins_as_the_reward_models_head(tmp_path):
    scorer = tiny_scalar_model()
    add_bias(scorer, scorer.score)
    nn.init.constant_(scorer.score.bias, 0.25)
    given = copy.deepcopy(scorer)
    parts = {"reward_model": given, "reward_funcs": ()}
    recipe = small_recipe(tmp_path, parts=parts, value_head="ensemble", num_generations=4)
    critic, rollout = recipe.models.critic, rollout_of(ROWS)
    as_scorer = rollout_values(make_critic(scorer), rollout).before_actions
    torch.testing.assert_close(rollout_values(critic, rollout).before_actions, as_scorer)
    nn.init.constant_(critic.head.bias, -0.5)
    weights = store_bias(critic.model, critic.head)
    critic.model.save_pretrained(tmp_path / "value", state_dict=weights)
    assert json.loads((tmp_path / "value" / "config.json").read_text())["head_bias"] == [-0.5, -0.5]
    again = load_scalar_model(
        str(tmp_path / "value"), role="value_model", dtype=torch.float32, value_head=critic.value_head
    )
    found = rollout_values(make_critic(again, value_head=critic.value_head), rollout).before_actions
    torch.testing.assert_close(found, as_scorer - 0.75)


def test_a_token_classification_model_with_the_head_in_its_configuration_is_a_critic():
    config = tiny_config("gpt_neox", labels=5)
    remember_head(config, EnsembleHead(5))
    critic = make_critic(AutoModelForTokenClassification.from_config(config), value_head=EnsembleHead(5))
    assert linear_head(critic.model, "value_model", 5) is critic.model.classifier
    assert rollout_values(critic, rollout_of(ROWS)).before_actions.shape == (10,)


def test_a_module_of_the_users_own_gives_values_itself():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.numbers = nn.Embedding(258, 1)

        def forward(self, ids, mask):
            return self.numbers(ids).squeeze(-1)

    with pytest.raises(ModelError, match=r"a Own gives the value itself, and the value head BoundedHead"):
        make_critic(Own(), value_head=BOUNDED)


@pytest.mark.parametrize("head", [HLGaussHead(0.0, 1.0, 5), EnsembleHead(3)], ids=["hl_gauss", "ensemble"])
def test_the_loss_of_a_minibatch_is_the_same_in_micro_batches_of_any_size(head, tmp_path):
    model = critic_from_trunk(tiny_causal_lm(dtype=torch.float64), 257, head)
    nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    recipe = small_recipe(
        tmp_path, dtype=torch.float64, num_generations=4, kl_coef=0.0, score_position="after_eos",
        stop_token_id=tuple(range(5, 90)), parts={"value_model": model, "value_head": head},
    )  # fmt: skip
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    assert experience.sample_numbers.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert experience.train_final.any()
    gradients = []
    for parts in ([experience], list(experience.split(20, 3))):
        model.zero_grad()
        for part in parts:
            value_objective(part, rollout_outputs(recipe.models.critic, part.rollout), head)[0].backward()
        gradients.append(model.score.weight.grad.clone())
    assert len(parts) > 1
    assert (gradients[0].abs().sum(1) > 0).all()  # of every output
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)


def test_frozen_weights_do_not_move(tmp_path):
    recipe = small_recipe(tmp_path, vf_frozen=("*self_attn*", "*embed_tokens*"), total_episodes=16)
    model = recipe.models.critic.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    frozen = sum(weight.numel() for name, weight in before.items() if "self_attn" in name or "embed_tokens" in name)
    assert f"{frozen:,} do not train (vf_frozen, 9 tensors)" in recipe.introduction
    trained(recipe)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "self_attn" not in name and "embed_tokens" not in name}
    assert all(weight.requires_grad for weight in recipe.models.policy.model.parameters())


def test_frozen_adapters_of_a_critic_leave_the_policys_alone(tmp_path):
    recipe = small_recipe(tmp_path, vf_frozen=("*q_proj*",), critic_trunk="adapter", **LORA)
    learning = [name for name, weight in recipe.models.critic.model.named_parameters() if weight.requires_grad]
    assert learning
    assert not [name for name in learning if "q_proj" in name]
    assert [name for name, w in recipe.models.policy.model.named_parameters() if w.requires_grad and "q_proj" in name]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["*self_atn*"], r"vf_frozen = '\*self_atn\*' matches no weight .* such as model.layers.0.self_attn"),
        (["*score*", "self_attn"], r"'self_attn' matches no weight"),
        (["*"], "matches all weights of the critic: nothing would train"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(patterns, said):
    with pytest.raises(ModelError, match=said):
        freeze(tiny_scalar_model(), patterns)
