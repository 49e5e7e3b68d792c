"""Modules of the user's own in whole runs: policy, reference and critic, saved and read back."""

import json

import pytest
import torch
from safetensors.torch import load_model

from nearstep import ConfigError, ModelError, PPOTrainer
from tests.models.test_layouts import Recurrent
from tests.tiny import byte_tokenizer
from tests.training.runs import PROMPTS, low_ids, settings


class Policy(Recurrent):
    def __init__(self):
        super().__init__(258)
        self.embedding = torch.nn.Embedding(258, 8)


class Critic(Recurrent):
    def __init__(self):
        super().__init__(1, squeeze=True)
        self.embedding = torch.nn.Embedding(258, 8)


def trainer(folder, *, tokenizer=True, changes=None, **parts):
    return PPOTrainer(
        args=settings(folder, **(changes or {})),
        processing_class=byte_tokenizer() if tokenizer else None,
        model=Policy(),
        train_dataset=[{"prompt": text} for text in PROMPTS],
        reward_funcs=[low_ids],
        **parts,
    )


def test_they_train_and_are_read_back(tmp_path, capsys):
    run = trainer(tmp_path, value_model=Critic())
    run.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["val/ratio_max_gap_first"] < 1e-5
    assert abs(rows[0]["objective/kl"]) < 1e-5
    assert rows[-1]["objective/kl_k3"] > 1e-6  # against the frozen copy of what the policy was
    assert "The policy runs on padded rows" in capsys.readouterr().out
    for role, made, trained in (("policy", Policy(), run.model), ("value", Critic(), run.recipe.models.critic.model)):
        start = {name: weights.clone() for name, weights in made.state_dict().items()}
        load_model(made, tmp_path / role / "weights.safetensors")
        for name, weights in made.state_dict().items():
            assert torch.equal(weights, trained.state_dict()[name])
        assert any(not torch.equal(weights, start[name]) for name, weights in made.state_dict().items())
        card = (tmp_path / role / "README.md").read_text()
        assert f"model = {type(made).__name__}(...)" in card
        assert "from_pretrained" in card  # the tokenizer
        assert "AutoModel" not in card


def test_another_of_them_is_the_reference(tmp_path):
    reference = Policy()
    with torch.no_grad():
        reference.out.bias[3] += 1.0
    run = trainer(tmp_path, ref_model=reference, changes={"advantage": "leave_one_out", "num_generations": 2})
    run.train()
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["objective/kl"]) > 1e-4


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no critic can be made from a Policy.* one number a token"):
        trainer(tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer: pass processing_class"):
        trainer(tmp_path, tokenizer=False, value_model=Critic())
