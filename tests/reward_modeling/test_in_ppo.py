"""A trained reward model in PPO: it scores as it does alone, and the critic that starts from it keeps its bias."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nearstep import PPOConfig, PPOTrainer
from nearstep.models.load import load_scalar_model
from nearstep.models.reward_model import make_scorer
from tests.reward_modeling.world import base_folder, pairs, trainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy, and a reward model that was trained on it."""
    place = tmp_path_factory.mktemp("models")
    base = base_folder(place / "policy")
    return base, trainer(place, pairs(40), model=str(base), learning_rate=3e-3, normalize="mean").train()


def run(folder, base, **reward):
    config = PPOConfig(
        output_dir=str(folder), use_cpu=True, total_episodes=8, per_device_train_batch_size=8, response_length=6,
        num_sample_generations=0, learning_rate=1e-2,
    )  # fmt: skip
    PPOTrainer(config, model=str(base), train_dataset=[{"prompt": row["prompt"]} for row in pairs(8)], **reward).train()
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def bias(folder):
    return json.loads((folder / "config.json").read_text())["head_bias"]


def test_scores_are_those_of_the_model_alone(folders, tmp_path):
    base, reward = folders
    records = run(tmp_path, base, reward_model=str(reward))
    model = load_scalar_model(str(reward), role="reward_model", dtype=torch.float32)
    scorer = make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=256)
    rows = [record["prompt_ids"] + record["completion_ids"] for record in records]
    torch.testing.assert_close(
        scorer.score(rows), torch.tensor([record["total_score"] for record in records]), atol=1e-6, rtol=0
    )


@pytest.mark.slow
def test_an_object_of_plain_transformers_scores_the_same(folders, tmp_path):
    base, reward = folders
    by_folder = run(tmp_path / "a", base, reward_model=str(reward))
    plain = AutoModelForSequenceClassification.from_pretrained(reward)
    assert plain.score.bias is None
    by_object = run(tmp_path / "b", base, reward_model=plain)
    assert [record["total_score"] for record in by_object] == [record["total_score"] for record in by_folder]


def test_the_critic_learns_the_bias_on_and_its_folder_keeps_it(folders, tmp_path):
    base, reward = folders
    run(tmp_path, base, reward_model=str(reward))
    assert bias(reward) != 0
    assert bias(tmp_path / "value") != bias(reward)
    critic = load_scalar_model(str(tmp_path / "value"), role="value_model", dtype=torch.float32)
    assert critic.score.bias.item() == pytest.approx(bias(tmp_path / "value"))


def test_adapters_score_as_the_merged_model_does(folders, tmp_path):
    base, _ = folders
    trained = trainer(tmp_path / "lora", pairs(20), model=str(base), use_peft=True, lora_r=2)
    merged = run(tmp_path / "a", base, reward_model=str(trained.train()))
    adapters = run(tmp_path / "b", base, reward_model=str(tmp_path / "lora" / "reward_adapter"))
    scores = [[record["total_score"] for record in records] for records in (merged, adapters)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


def test_a_policy_is_no_reward_model(folders, tmp_path):
    base, _ = folders
    with pytest.raises(Exception, match="lacks 1 of the model's tensors"):
        run(tmp_path, base, reward_model=str(base))
