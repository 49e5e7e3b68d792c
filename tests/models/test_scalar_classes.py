"""Critics and reward models of families for which transformers has no class, and of decoders whose class pools."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nearstep.models.forward.forward import rollout_values
from nearstep.models.load import critic_from_trunk, load_scalar_model
from nearstep.models.reward_model import make_scorer
from nearstep.models.reward_start import start_reward_model
from nearstep.models.roles import make_critic, transformers_model
from nearstep.training.experience import make_experience
from nearstep.training.schedules import Phase
from nearstep.training.state import State
from nearstep.training.update import update
from tests.lanes import slow
from tests.training.runs import play, small_recipe

SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 256,
    "pad_token_id": 257,
}  # fmt: skip
FAMILIES = {
    "granite": {"logits_scaling": 3.0},
    "cohere": {},
    "lfm2": {"layer_types": ["full_attention", "conv"]},
    "vaultgemma": {},
    "bert": {"is_decoder": True},  # its own class reads the first token's pooled state
}
ADAPTERS = {"use_peft": True, "lora_target_modules": ("all-linear",)}


def policy_of(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **FAMILIES[kind]})).eval()


def learned(recipe):
    """The recipe after two passes over one rollout, and the rollout."""
    _, rollout, scores = play(recipe)
    update(make_experience(rollout, scores, recipe), [Phase(2, 1, policy=True, critic=True)], recipe)
    return rollout


@pytest.mark.parametrize(
    ("kind", "trunk"),
    [slow((kind, "shared")) for kind in FAMILIES if kind != "bert"]  # whose logits need the whole model
    + [("granite", "separate"), slow(("granite", "adapter")), slow(("bert", "separate")), ("bert", "adapter")],
)
def test_critics_of_every_family_learn_and_open_again(kind, trunk, tmp_path):
    changes = ADAPTERS if trunk == "adapter" else {}
    recipe = small_recipe(tmp_path, parts={"model": policy_of(kind)}, critic_trunk=trunk, learning_rate=1e-2, **changes)
    assert rollout_values(recipe.models.critic, play(recipe)[1]).before_actions.abs().max() == 0
    rollout = learned(recipe)
    values = rollout_values(recipe.models.critic, rollout).before_actions
    assert values.abs().max() > 1e-2
    recipe.checkpoint.save_final(State())
    again = load_scalar_model(str(tmp_path / "value"), role="value_model", dtype=torch.float32)
    found = rollout_values(make_critic(again), rollout).before_actions
    torch.testing.assert_close(found, values.detach(), atol=1e-5, rtol=1e-4)


def test_the_card_of_such_a_critic_opens_it_in_plain_transformers(tmp_path):
    recipe = small_recipe(tmp_path, parts={"model": policy_of("granite")}, learning_rate=1e-2)
    learned(recipe)
    recipe.checkpoint.save_final(State())
    model = transformers_model(recipe.models.critic.model, "value_model")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model.score(model.base_model(ids).last_hidden_state)
    card = (tmp_path / "value" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/to/this/folder", str(tmp_path / "value"))
    assert "nearstep" not in code
    opened = {}
    exec(code, opened)
    values = opened["trunk"](ids).last_hidden_state @ opened["head"].T
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


def test_a_reward_model_starts_from_such_a_family_and_scores_last_tokens(tmp_path):
    policy_of("cohere").save_pretrained(tmp_path / "policy")
    for given in (policy_of("cohere"), str(tmp_path / "policy")):
        model, is_new = start_reward_model(given, seed=0, dtype=torch.float32, pad_token_id=257)
        assert is_new
        model.save_pretrained(tmp_path / "reward")
        again = load_scalar_model(str(tmp_path / "reward"), role="reward_model", dtype=torch.float32)
        rows = [[1, 2, 3], [4, 5]]
        scores = make_scorer(again, role="reward_model", pad_token_id=257, max_tokens=100).score(rows)
        by_hand = [model.score(model.base_model(torch.tensor([row])).last_hidden_state)[0, -1, 0] for row in rows]
        torch.testing.assert_close(scores, torch.stack(by_hand).detach(), atol=1e-5, rtol=1e-4)


def test_one_class_for_each_family_and_transformers_own_where_it_fits():
    one, two = (critic_from_trunk(policy_of("granite"), 257) for _ in range(2))
    assert type(one) is type(two)
    assert type(one).__name__ == "GraniteModelWithScore"
    assert type(critic_from_trunk(policy_of("bert"), 257)).__name__ == "BertModelWithScore"
    llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    assert type(critic_from_trunk(llama, 257)).__name__ == "LlamaForSequenceClassification"
