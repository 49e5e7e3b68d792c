"""Whole runs against the same PPO in plain steps: weights and metrics, under the settings where bugs have hidden."""

import copy
import json

import pytest
import torch

from nearstep import PPOTrainer
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.plain_ppo import PlainPPO
from tests.training.runs import PROMPTS, settings

EOS = tuple(range(0, 258, 5))  # a fifth of all tokens end a response, so that lengths differ


def share_of_low_ids(completion_ids, **kwargs):
    """A score with ties and differences; None, which drops the row, where a response begins with a multiple of 3."""
    return [
        None if ids[0] % 3 == 0 else 2 * sum(token < 100 for token in ids) / len(ids) - 0.3 for ids in completion_ids
    ]


def of_every_row(completion_ids, **kwargs):
    return [2 * sum(token < 100 for token in ids) / len(ids) - 0.3 for ids in completion_ids]


def model(seed):
    # GPT-2's norms compute in float64 where its weights are; those of Llama always compute in float32.
    return tiny_causal_lm("gpt2", seed=seed, dtype=torch.float64, layers=1)


def critic():
    scalar = tiny_scalar_model("gpt2", seed=2, dtype=torch.float64, layers=1)
    with torch.no_grad():
        scalar.score.weight.mul_(0.1)
    return scalar


def plain_of(config, policy, value):
    """The plain run with the same weights to begin with."""
    if config.advantage != "gae":
        critic, weights = None, []
    elif config.critic_trunk == "shared":
        head = torch.nn.Linear(32, 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(head.weight)

        def critic(ids):
            return head(policy.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]).squeeze(-1)

        weights = [head.weight]
    else:

        def critic(ids):
            return value.score(value.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]).squeeze(-1)

        weights = [weight for name, weight in value.named_parameters()]
    reference = model(seed=5)
    return PlainPPO(config, policy, reference, critic, weights, kl_coef=config.kl_coef)


def compare(tmp_path, *, reward=of_every_row, updates=3, **changes):
    """Run both; their weights and metrics must agree. Returns the plain run and the lines of metrics.jsonl."""
    shared = {
        "optim": "sgd", "learning_rate": 0.02, "max_grad_norm": None, "total_episodes": 8 * updates, "vf_coef": 0.5,
        "stop_token_id": EOS, "num_ppo_epochs": 2, "kl_coef": 0.05, "response_length": 5,
    }  # fmt: skip
    config = settings(tmp_path, **{**shared, **changes})
    policy, value = model(seed=0), critic()
    plain = plain_of(config, copy.deepcopy(policy), copy.deepcopy(value))
    separate = config.advantage == "gae" and config.critic_trunk == "separate"
    trainer = PPOTrainer(
        args=config, processing_class=byte_tokenizer(), model=policy, ref_model=model(seed=5),
        value_model=value if separate else None, reward_funcs=reward, train_dataset=[{"prompt": p} for p in PROMPTS],
    )  # fmt: skip
    before = weights_of(plain.policy)
    trainer.train()
    records, lines = (lines_of(tmp_path / name) for name in ("rollouts.jsonl", "metrics.jsonl"))
    for line in lines:
        expected = plain.update(line["update"], [r for r in records if r["update"] == line["update"]])
        for name, number in expected.items():
            assert line[name] == pytest.approx(number, rel=1e-5, abs=1e-6), (line["update"], name)
    moved = (weights_of(plain.policy) - before).abs().max()
    assert moved > 1e-4
    assert (weights_of(trainer.model) - weights_of(plain.policy)).abs().max() <= 1e-5 * moved
    for found, expected in zip(critic_weights(trainer, config), plain.critic_weights, strict=True):
        assert (found - expected).abs().max() <= 1e-6
    return plain, lines


def critic_weights(trainer, config):
    if trainer.value_model is None:
        return []
    return [trainer.value_model.score.weight] if config.critic_trunk == "shared" else trainer.value_model.parameters()


def weights_of(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_log_probs_are_at_the_sampling_temperature(tmp_path):
    compare(tmp_path, temperature=0.6, kl_coef=0.3, entropy_coef=0.1)


def test_a_kl_loss_at_another_temperature(tmp_path):
    compare(tmp_path, temperature=1.7, kl_coef=0.3, kl_in="loss", kl_estimator="k3")


def test_entropy_reaches_a_shared_trunk(tmp_path):
    compare(tmp_path, critic_trunk="shared", entropy_coef=0.5, vf_learning_rate=0.02)
