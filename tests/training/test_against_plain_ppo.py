"""Whole runs against the same PPO in plain steps: weights and metrics, under the settings where bugs have hidden."""

import copy
import json
from dataclasses import dataclass, replace

import pytest
import torch

from nearstep import PPOTrainer
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.plain_ppo import PlainPPO
from tests.training.runs import PROMPTS, settings

EOS = tuple(range(0, 258, 5))  # a fifth of all tokens end a response, so that lengths differ


def some_unscored(completion_ids, **kwargs):
    """A score with ties and differences; None, which drops the row, where a response begins with a multiple of 3."""
    return [
        None if ids[0] % 3 == 0 else 2 * sum(token < 100 for token in ids) / len(ids) - 0.3 for ids in completion_ids
    ]


def of_every_row(completion_ids, **kwargs):
    return [2 * sum(token < 100 for token in ids) / len(ids) - 0.3 for ids in completion_ids]


def drift(tokens):
    """By how much an engine's log-probs may be off: by -0.3, 0 or 0.3, as the token has it."""
    return 0.3 * (tokens % 3 - 1)


@dataclass
class DriftingEngine:
    """Samples as the engine inside, and records other log-probs than it sampled by."""

    inner: object

    def load(self, policy, version):
        self.inner.load(policy, version)

    def capabilities(self):
        return self.inner.capabilities()

    def close(self):
        self.inner.close()

    def generate(self, prompts, settings, row_ended=None):
        rollout = self.inner.generate(prompts, settings, row_ended)
        return replace(rollout, logprobs=rollout.logprobs + drift(rollout.actions.to(rollout.logprobs.dtype)))


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


def compare(tmp_path, *, reward=of_every_row, updates=3, drifts=False, **changes):
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
    if drifts:
        plain.drift, trainer.recipe = drift, replace(trainer.recipe, engine=DriftingEngine(trainer.recipe.engine))
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


@pytest.mark.slow
def test_all_log_probs_are_at_the_sampling_temperature(tmp_path):
    compare(tmp_path, temperature=0.6, kl_coef=0.3, entropy_coef=0.1)


@pytest.mark.slow
def test_a_kl_loss_at_another_temperature(tmp_path):
    compare(tmp_path, temperature=1.7, kl_coef=0.3, kl_in="loss", kl_estimator="k3")


def test_entropy_reaches_a_shared_trunk(tmp_path):
    compare(tmp_path, critic_trunk="shared", entropy_coef=0.5, vf_learning_rate=0.02)


@pytest.mark.slow
def test_a_clip_sees_the_ratio_of_the_sequence(tmp_path):
    _, lines = compare(
        tmp_path, ratio_level="row", cliprange=0.05, cliprange_high=0.1, dual_clip=1.3, num_ppo_epochs=3,
        loss_aggregation="sequence_mean", learning_rate=0.01,
    )  # fmt: skip
    assert 0.05 < lines[0]["policy/clipfrac_avg"] < 0.6


@pytest.mark.parametrize("region", [slow("clip"), "binary_tv"])
def test_a_region_sees_the_ratio_of_each_token(tmp_path, region):
    limits = {"clip": {"cliprange": 0.05, "cliprange_high": 0.1, "dual_clip": 1.3},
              "binary_tv": {"divergence_low": 5e-4, "divergence_high": 1e-3, "ratio_cap": 1.2}}  # fmt: skip
    _, lines = compare(tmp_path, trust_region=region, num_ppo_epochs=3, learning_rate=0.01, **limits[region])
    assert 0.05 < lines[0]["policy/clipfrac_avg"] < 0.6


@pytest.mark.parametrize("changes", [
    slow({}), slow({"anchor": "recomputed"}), {"anchor": "recomputed", "importance_cap": 1.2, "importance_floor": 0.9},
    {"anchor": "recomputed", "importance_cap": 1.2, "importance_rule": "mask"},
])  # fmt: skip
def test_an_engine_that_is_not_quite_the_trainer(tmp_path, changes):
    """Ratios against what it recorded, or against the trainer's own with a weight on each token's loss."""
    compare(tmp_path, drifts=True, updates=1, cliprange=0.25, kl_coef=0.3, **changes)


@pytest.mark.parametrize("rule", [slow("group_mean"), "group_normalized", slow("leave_one_out")])
def test_rows_without_a_score_count_for_nobody_in_their_group(tmp_path, rule):
    _, lines = compare(
        tmp_path, advantage=rule, num_generations=4, reward=some_unscored, on_reward_error="drop",
        loss_aggregation="sequence_sum_norm",
    )  # fmt: skip
    assert 0 < lines[0]["response/left_out"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("position", [slow("last_token"), "after_eos"])
def test_rows_without_a_score_count_for_nobody_in_a_batch(tmp_path, position):
    compare(
        tmp_path, reward=some_unscored, on_reward_error="drop", whiten_rewards=True, score_position=position, lam=0.7,
        gamma=0.9, loss_aggregation="sequence_sum",
    )  # fmt: skip


@pytest.mark.slow
def test_epochs_end_where_the_policy_has_gone_too_far(tmp_path):
    """1.5 × the limit lies between what the second and the third epoch measure; the limit itself below the second's."""
    free, _ = compare(tmp_path / "free", updates=1, num_ppo_epochs=4, learning_rate=0.01)
    _, second, third, fourth = free.kl_by_epoch[0]
    assert 0 < 1.2 * second < third < fourth
    held, lines = compare(
        tmp_path / "held", updates=1, num_ppo_epochs=4, learning_rate=0.01, early_stop_kl=0.8 * second
    )  # fmt: skip
    assert [len(epochs) for epochs in held.kl_by_epoch] == [3]
    assert lines[0]["optimizer/steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [slow("k1"), "k3"])
def test_the_coefficient_follows_the_kl(tmp_path, estimator):
    _, lines = compare(tmp_path, kl_coef=0.3, kl_target=0.4, kl_horizon=20, kl_estimator=estimator)
    assert len({line["objective/kl_coef"] for line in lines}) == 3


def test_the_critic_warms_up_alone_on_its_own_lambda(tmp_path):
    """The first update trains the critic alone, on Monte-Carlo returns; the second has targets by lam_critic."""
    compare(tmp_path, vf_warmup_updates=1, lam=0.6, lam_critic=0.9, vf_warmup_lam=1.0, updates=2)


@pytest.mark.slow
def test_a_shared_trunk_warms_up_by_its_head_alone(tmp_path):
    compare(tmp_path, vf_warmup_updates=1, lam=0.6, critic_trunk="shared", updates=3)


def test_rules_for_scores_in_their_order(tmp_path):
    compare(tmp_path, normalize_scores="shift_and_scale", reward_clip=1.0, missing_eos_penalty=0.5)


@pytest.mark.slow
def test_scores_divided_and_replaced(tmp_path):
    compare(
        tmp_path, normalize_scores="scale", non_eos_penalty=True, penalty_reward_value=-2.0, bootstrap_truncated=True,
        lam_length_alpha=0.5, mask_truncated_completions=True,
    )  # fmt: skip


def test_all_that_trl_does(tmp_path):
    _, lines = compare(
        tmp_path, score_position="after_eos", temperature=0.7, missing_eos_penalty=1.0, whiten_rewards=True,
        cliprange_value=1e-4, bootstrap_truncated=True, loss_aggregation="token_sum", learning_rate=1e-3,
    )  # fmt: skip
    assert 0.05 < lines[0]["val/clipfrac_avg"] < 0.95
