"""AlignTune's three snippets: with our names as the example has them, and with its own on the same folders."""

import json

import pytest

from examples import from_aligntune
from nearstep import PPOConfig, PPOTrainer, RewardModelTrainer
from nearstep.common.errors import ConfigError
from tests.reward_modeling.world import base_folder, trainer, write

pytestmark = pytest.mark.slow  # dear, and the parts have tests of their own


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy, a reward model and a folder of hh-rlhf transcripts."""
    place = tmp_path_factory.mktemp("aligntune")
    policy = str(base_folder(place / "policy", layers=1))
    rows = [
        {name: f"\n\nHuman: Say {n}.\n\nAssistant: {n}\n\nHuman: More.\n\nAssistant: {answer}"
         for name, answer in (("chosen", f"{n + 1}"), ("rejected", "No."))}
        for n in range(3)
    ]  # fmt: skip
    (place / "hh-rlhf").mkdir()
    write(place / "hh-rlhf" / "train.jsonl", rows)
    reward_model = trainer(place, rows, model=policy, held_out_share=0.0).train()
    return policy, str(reward_model), str(place / "hh-rlhf")


def test_with_our_names(folders, tmp_path):
    for output in from_aligntune.main(*folders, str(tmp_path)):
        assert (output.updates, output.episodes) == (3, 3)
        assert (output.policy / "config.json").is_file()
    report = json.loads((tmp_path / "reward_model_taught" / "reward_model" / "report.json").read_text())
    assert report["held_out"].keys() >= {"pearson", "mean_squared_error"}


def test_with_its_names(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy, reward_model, data = folders
    common = {
        "model_name": policy, "dataset_name": data, "algorithm": "ppo", "num_epochs": 1, "batch_size": 1,
        "learning_rate": 1e-6, "response_length": 4,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="backend is called model_loader here"):
        basic = PPOConfig(**common, backend="trl", reward_model_name=reward_model, output_dir="basic")
    functions = PPOConfig(
        **common, backend="auto", reward_functions=["helpfulness", "safety"],
        reward_function_weights=[0.6, 0.4], output_dir="functions",
    )  # fmt: skip
    assert [PPOTrainer(config).train().updates for config in (basic, functions)] == [3, 3]
    teacher = RewardModelTrainer(
        base_model_name=policy, reward_functions=["helpfulness", "safety", "coherence"],
        composite_weights=[0.4, 0.3, 0.3],
    )  # fmt: skip
    assert teacher.run.config.num_texts == 512
    assert teacher.run.config.reward_weights == (0.4, 0.3, 0.3)


def test_another_backend_is_refused():
    with pytest.raises(ConfigError, match="backend"):
        PPOConfig(backend="megatron")
