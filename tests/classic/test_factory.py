"""`create_rl_trainer`: each row of its guide's tables, what it chose, and what it refuses."""

import json
import sys

import pytest

from nearstep import ConfigError, PPOTrainer, create_rl_trainer
from nearstep.classic import factory
from nearstep.common import import_order
from nearstep.config.recipes import RECIPES
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.unsloth.stand_in import stand_in


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy, a reward model and prompts."""
    place = tmp_path_factory.mktemp("factory")
    for name, model in (("policy", tiny_causal_lm(layers=1)), ("reward", tiny_scalar_model(layers=1))):
        model.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    rows = [json.dumps({"prompt": f"What is {n}?"}) for n in range(3)]
    (place / "prompts.jsonl").write_text("\n".join(rows))
    return {
        "model_name": str(place / "policy"), "dataset_name": str(place / "prompts.jsonl"),
        "reward_model_name": str(place / "reward"), "output_dir": str(place / "out"), "response_length": 3,
        "use_cpu": True,
    }  # fmt: skip


def made(folders, **changed):
    given = {name: value for name, value in (folders | changed).items() if value is not ...}
    return create_rl_trainer(**given)


# Name, default, another value, and where the setting stands here: the two tables of the guide.
NUMBERS = [
    ("cliprange", 0.2, 0.1, "cliprange"), ("kl_coef", 0.1, 0.3, "kl_coef"), ("vf_coef", 0.1, 0.5, "vf_coef"),
    ("gamma", 1.0, 0.9, "gamma"), ("lam", 0.95, 0.8, "lam"), ("num_generations", 8, 4, "num_generations"),
    ("num_ppo_epochs", 4, 2, "num_ppo_epochs"), ("num_epochs", 3.0, 1, "num_train_epochs"),
    ("learning_rate", 3e-6, 1e-6, "learning_rate"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(folders):
    return made(folders, algorithm="ppo", backend="trl")


@pytest.fixture(scope="module")
def changed(folders):
    return made(folders, **{name: other for name, _, other, _ in NUMBERS})


@pytest.mark.parametrize(("name", "default", "other", "ours"), NUMBERS)
def test_a_number_of_the_table(name, default, other, ours, plain, changed):
    assert isinstance(plain, PPOTrainer)
    assert vars(plain.recipe.config)[ours] == default
    assert vars(changed.recipe.config)[ours] == other


@pytest.mark.parametrize("name", ["reward_model_name", "reward_model_path"])
def test_a_reward_model_by_either_name(name, folders):
    trainer = made(folders, **({"reward_model_name": ...} | {name: folders["reward_model_name"]}))
    assert trainer.recipe.rewards.names == ["reward"]
    assert trainer.recipe.config.reward_weights is None


def test_functions_and_their_weights(folders):
    def own(completions, **columns):
        return [0.0 for _ in completions]

    trainer = made(folders, reward_model_name=..., reward_functions=["length", own], reward_function_weights=[0.6, 0.4])
    assert trainer.recipe.rewards.names == ["length", "own"]
    assert trainer.recipe.config.reward_weights == (0.6, 0.4)
    both = made(folders, reward_functions=["length"], reward_function_weights=[0.5])
    assert both.recipe.config.reward_weights == (1.0, 0.5)  # a reward model beside them weighs 1


def test_a_batch_counts_prompts(folders, capsys):
    trainer = made(folders, batch_size=2, num_generations=4)
    assert (trainer.recipe.batch.batch, trainer.recipe.batch.prompts) == (8, 2)
    told = capsys.readouterr().err
    assert "create_rl_trainer: algorithm ppo on backend transformers" in told
    assert "batch_size = 8 responses, num_generations = 4, kl_coef = 0.1, cliprange = 0.2" in told


def test_an_algorithm_is_a_recipe_and_what_is_given_wins_over_it(folders):
    trainer = made(folders, algorithm="divergence")
    config = trainer.recipe.config
    assert {name: vars(config)[name] for name in RECIPES["divergence"]} == RECIPES["divergence"]
    assert config.num_generations == 8
    assert made(folders, algorithm="decoupled", vf_lr=1e-4).recipe.config.critic == "decoupled"
    assert made(folders, algorithm="divergence", init_kl_coef=0.2).recipe.config.kl_coef == 0.2


def test_the_guide_as_typed_with_folders_put_in(folders, tmp_path):
    """Its last snippet; batch 1 is one prompt."""
    trainer = create_rl_trainer(
        model_name=folders["model_name"],
        dataset_name=folders["dataset_name"],
        algorithm="ppo",
        backend="trl",
        reward_functions=["helpfulness", "safety"],
        reward_function_weights=[0.6, 0.4],
        num_epochs=1,
        batch_size=1,
        learning_rate=1e-6,
        response_length=3,
        output_dir=str(tmp_path / "out"),
    )
    done = trainer.train()
    assert (done.updates, done.episodes) == (3, 24)


@pytest.mark.parametrize(("changed", "said"), [
    ({"kl_coeff": 0.1}, "unknown setting kl_coeff; did you mean kl_coef"),
    ({"algorithm": "divergance"}, "did you mean divergence"),
    ({"algorithm": "dppo"}, "two meanings"),
    ({"algorithm": "grpo"}, "group_normalized"),
    ({"algorithm": "dpo"}, "there are ppo, decoupled, divergence"),
    ({"backend": "unsloht"}, "did you mean unsloth"),
    ({"backend": "megatron"}, "there are transformers, trl, unsloth"),
    ({"reward_model_path": "x"}, "the same setting: give one"),
    ({"reward_functions": "length"}, "reward_functions: got 'length'; give a list"),
    ({"reward_functions": ["length"], "reward_function_weights": [1.0, 2.0]}, "has 2 weight(s) for 1"),
    ({"reward_funcs": ["length"]}, "create_rl_trainer has reward_functions"),
    ({"batch_size": 0}, "batch_size = 0 must be a whole number"),
    ({"reward_model_name": ...}, "no reward"),
    ({"load_in_8bit": True}, "by load_in_4bit"),
])  # fmt: skip
def test_what_is_refused(changed, said, folders):
    with pytest.raises(ConfigError) as error:
        made(folders, **changed)
    assert said in str(error.value)


def test_unsloth_is_refused_where_it_is_not_installed(folders, monkeypatch):
    monkeypatch.setattr(import_order, "is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"unsloth is not installed: pip install 'nearstep\[unsloth\]'"):
        made(folders, backend="unsloth")


def test_unsloth_loads_the_policy_and_lora_trains(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "unsloth", stand_in())
    monkeypatch.setattr(import_order, "imported_before", lambda package: [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = made(folders, backend="unsloth", batch_size=1, lora_r=4).recipe.config
    assert (config.model_loader, config.use_peft, config.load_in_4bit, config.dtype) == (
        "unsloth",
        True,
        False,
        "float32",
    )
    assert "on backend unsloth" in (told := capsys.readouterr().err)
    assert "use_peft = True, load_in_4bit = False, dtype = float32, batch_size = 8 responses" in told


@pytest.mark.parametrize(("policy", "settings"), [
    ("unsloth/Llama-3.2-1B-Instruct", {"load_in_4bit": True, "dtype": "bfloat16"}),
    ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", {"dtype": "bfloat16"}),  # as the guide has it: packed already
])  # fmt: skip
def test_unsloth_packs_on_a_gpu_what_is_not_packed_yet(policy, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", stand_in("cuda"))
    monkeypatch.setattr(import_order, "imported_before", lambda package: [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = factory._by_unsloth({"model_name_or_path": policy})
    assert found == {"model_loader": "unsloth", "use_peft": True, **settings}
    off = factory._by_unsloth({"model_name_or_path": policy, "use_cpu": True})
    assert off == {"model_loader": "unsloth", "use_peft": True}
