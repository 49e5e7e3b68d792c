"""PPO by calls of one's own: what `step` returns against plain formulas, `generate`, the reference, what is refused."""

import json
import math
import warnings

import pytest
import torch
from peft import LoraConfig

from nearstep.classic import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from nearstep.common.errors import ConfigError, DataError, ModelError
from tests.tiny import byte_tokenizer, tiny_causal_lm

SAMPLED = {"do_sample": True, "top_k": 0.0, "top_p": 1.0, "min_length": -1, "pad_token_id": 257}
QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 9]), torch.tensor([1, 2, 3, 4])]
RESPONSES = [torch.tensor([10, 11]), torch.tensor([12, 256]), torch.tensor([13, 14, 15]), torch.tensor([16])]
SCORES = [torch.tensor(1.0), 2.0, torch.tensor([-1.0]), 0.5]


def made(tmp_path, *, model=None, dataset=None, ref_model=None, **settings):
    given = {
        "batch_size": 4, "mini_batch_size": 2, "learning_rate": 1e-2, "ppo_epochs": 1, "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    config = PPOConfig(**(given | settings))
    return PPOTrainer(config, model or tiny_causal_lm(layers=1), ref_model, byte_tokenizer(), dataset=dataset)


def logprobs(model, query, response):
    ids = torch.cat([query, response])
    scores = model(ids[None]).logits[0].log_softmax(-1)
    return scores[len(query) - 1 : -1].gather(-1, response[:, None])[:, 0]


@torch.no_grad()
def test_what_a_step_returns(tmp_path):
    """Against transformers' own log-probs, the KL by row, its controller, and means of the rows."""
    policy, other = tiny_causal_lm(layers=1), tiny_causal_lm(layers=1, seed=7)
    own = [logprobs(policy, *row) for row in zip(QUERIES, RESPONSES, strict=True)]
    ref = [logprobs(other, *row) for row in zip(QUERIES, RESPONSES, strict=True)]
    kls = [float((mine - theirs).sum()) for mine, theirs in zip(own, ref, strict=True)]
    trainer = made(tmp_path, model=policy, ref_model=other, init_kl_coef=0.3, target=2.0, horizon=100)
    with torch.enable_grad():
        stats = trainer.step(QUERIES, RESPONSES, SCORES)
    kl = sum(kls) / 4
    assert stats["objective/kl"] == pytest.approx(kl, abs=1e-4)
    assert stats["objective/kl_dist"].tolist() == pytest.approx(kls, abs=1e-4)
    assert stats["objective/kl_coef"] == 0.3
    assert trainer.kl_ctl.value == pytest.approx(0.3 * (1 + min(max(kl / 2 - 1, -0.2), 0.2) * 4 / 100))
    for found, row in zip(stats["objective/logprobs"], own, strict=True):
        assert found.tolist() == pytest.approx(row.tolist(), abs=1e-4)
    assert stats["objective/entropy"] == pytest.approx(-sum(float(row.sum()) for row in own) / 4, abs=1e-3)
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.3 * sum(kls) / 8, abs=1e-4)
    assert stats["ppo/mean_scores"] == pytest.approx(2.5 / 4)
    assert stats["ppo/val/mean"] == 0  # the value head starts at zero
    # λ-returns of values 0: the KL penalty of each token and the score at the end, discounted by λ = 0.95.
    returns = []
    for mine, theirs, score in zip(own, ref, (1.0, 2.0, -1.0, 0.5), strict=True):
        rewards = [-0.3 * float(each) for each in mine - theirs]
        rewards[-1] += score
        returns += [sum(0.95**later * reward for later, reward in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert stats["ppo/returns/mean"] == pytest.approx(sum(returns) / 8, abs=1e-4)
    assert stats["ppo/val/error"] == pytest.approx(sum(each**2 for each in returns) / 8, rel=1e-4)
    assert stats["ppo/loss/total"] == pytest.approx(stats["ppo/loss/policy"] + 0.1 * stats["ppo/loss/value"])
    assert (stats["tokens/queries_len_mean"], stats["tokens/responses_len_mean"]) == (2.5, 2.0)
    assert trainer.state.steps.policy == 2  # 4 rows in mini-batches of 2


def test_steps_raise_what_is_rewarded_and_reports_are_those_of_other_runs(tmp_path):
    trainer = made(tmp_path, batch_size=8, mini_batch_size=8, ppo_epochs=2, init_kl_coef=0.01)
    queries = [torch.tensor([5, 6])] * 8
    means = []
    for _ in range(4):
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4, **SAMPLED)
        scores = [float((response < 128).float().mean()) for response in responses]
        stats = trainer.step(queries, responses, scores)
        trainer.log_stats(stats, {"query": queries}, scores)
        means.append(stats["ppo/mean_scores"])
    trainer.close()
    assert means[-1] > means[0] + 0.1
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["objective/scores"] for line in logged] == pytest.approx(means)
    trainer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.pretrained_model.lm_head.weight, trainer.model.pretrained_model.lm_head.weight)


def test_generate_gives_what_the_old_one_gave(tmp_path):
    trainer = made(tmp_path)
    one = trainer.generate(QUERIES[0], max_new_tokens=3, **SAMPLED)
    assert one.shape == (1, 6)
    assert one[0, :3].tolist() == [5, 6, 7]
    rows, ref = trainer.generate(QUERIES, generate_ref_response=True, return_prompt=False, max_new_tokens=3,
                                 eos_token_id=-1)  # fmt: skip
    assert [len(row) for row in rows] == [3] * 4  # nothing ends a response
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(rows, ref, strict=True))  # greedy, same weights
    drawn = [trainer.generate(QUERIES, return_prompt=False, max_new_tokens=8, **SAMPLED) for _ in range(2)]
    assert [row.tolist() for row in drawn[0]] != [row.tolist() for row in drawn[1]]
    again = made(tmp_path).generate(QUERIES[0], max_new_tokens=3, **SAMPLED)
    assert torch.equal(one, again)  # by the seed
    total = trainer.generate(QUERIES, max_length=5, **SAMPLED)
    assert max(map(len, total)) <= 5
    lengths = LengthSampler(2, 5)
    assert all(2 <= lengths() < 5 for _ in range(20))
    assert trainer.generate(QUERIES[1], length_sampler=lambda: 2, **SAMPLED).shape[1] <= 3


def test_with_adapters_the_reference_is_the_policy_without_them(tmp_path):
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(layers=1), peft_config=adapters)
    trainer = made(tmp_path, model=model)
    first = trainer.step(QUERIES, RESPONSES, SCORES)
    second = trainer.step(QUERIES, RESPONSES, SCORES)
    assert first["objective/kl"] == 0
    assert abs(second["objective/kl"]) > 1e-5
    with pytest.raises(ModelError, match="leave it out"):
        create_reference_model(model)


def test_tokens_that_the_policy_did_not_choose_are_left_out(tmp_path):
    masks = [torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([0, 1, 1]), torch.tensor([1])]
    stats = made(tmp_path).step(QUERIES, RESPONSES, SCORES, response_masks=masks)
    assert [len(row) for row in stats["objective/logprobs"]] == [1, 2, 2, 1]


def test_the_data_loader_gives_whole_batches_in_a_seeded_order(tmp_path):
    rows = [{"input_ids": [n], "query": str(n)} for n in range(10)]
    trainer = made(tmp_path, dataset=rows)
    first = [batch["query"] for batch in trainer.dataloader]
    assert [len(each) for each in first] == [4, 4]
    assert first == [batch["query"] for batch in trainer.dataloader]
    assert isinstance(next(iter(trainer.dataloader))["input_ids"][0], torch.Tensor)
    trainer.step(QUERIES, RESPONSES, SCORES)
    assert first != [batch["query"] for batch in trainer.dataloader]
    with pytest.raises(DataError, match="3 rows, and a batch takes 4"):
        made(tmp_path, dataset=rows[:3]).dataloader  # noqa: B018


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return made(tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize(("given", "said"), [
    ((QUERIES[:3], RESPONSES, SCORES), "queries has 3 rows, and batch_size = 4"),
    ((QUERIES, RESPONSES, SCORES[:2]), "scores: got 2; give a number for each of the 4 rows"),
    ((QUERIES, RESPONSES, [1.0, 2.0, math.nan, 1.0]), "scores[2] = nan must be one finite number"),
    ((QUERIES, [*RESPONSES[:3], torch.tensor([], dtype=torch.long)], SCORES), "responses[3] is empty"),
    ((QUERIES, [*RESPONSES[:3], torch.tensor([1.5])], SCORES), "responses[3] has shape (1,) and type torch.float32"),
    ((torch.stack([QUERIES[0]] * 4), RESPONSES, SCORES), "queries: got Tensor; give a list"),
    ((QUERIES, RESPONSES, SCORES, [torch.ones(2)] * 4), "response_masks[2] must have an entry for each of the 3"),
    ((QUERIES, RESPONSES, SCORES, [torch.zeros(2)] * 4), "response_masks[0] leaves no token"),
])  # fmt: skip
def test_rows_that_are_refused(given, said, trainer):
    with pytest.raises(DataError) as error:
        trainer.step(*given)
    assert said in str(error.value)
    assert trainer.state.update == 0


@pytest.mark.parametrize(("given", "said"), [
    ({}, "give max_new_tokens, or length_sampler"),
    ({"max_new_tokens": 0}, "max_new_tokens = 0 must be a whole number"),
    ({"max_new_tokens": 4, "num_beams": 4}, "num_beams = 4 is not here"),
    ({"max_new_tokens": 4, "temprature": 1}, "unknown setting temprature; did you mean temperature"),
    ({"max_new_tokens": 4, "do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
])  # fmt: skip
def test_generation_that_is_refused(given, said, trainer):
    with pytest.raises(ConfigError) as error:
        trainer.generate(QUERIES, **given)
    assert said in str(error.value)


@pytest.mark.parametrize(("given", "said"), [
    ({"batch_size": 6, "mini_batch_size": 4}, "batch_size = 6 is no multiple of mini_batch_size"),
    ({"kl_penalty": "k3"}, "kl_penalty = 'k3' must be one of kl, abs, mse, full"),
    ({"ratio_threshold": 5.0}, "a token whose ratio leaves the band teaches nothing already"),
    ({"lerning_rate": 1.0}, "did you mean learning_rate"),
    ({"use_score_norm": True}, "use_score_norm needs use_score_scaling"),
])  # fmt: skip
def test_settings_that_are_refused(given, said):
    with pytest.raises(ConfigError) as error:
        PPOConfig(**given)
    assert said in str(error.value)


def test_settings_become_ours():
    with pytest.warns(UserWarning, match="ratio_threshold has no effect"):
        plain = PPOConfig(ratio_threshold=10.0).ours(2)
    assert (plain.batch_size, plain.num_mini_batches, plain.kl_coef, plain.kl_target) == (256, 1, 0.2, 6.0)
    assert (plain.critic_trunk, plain.temperature, plain.max_grad_norm) == ("shared", 1.0, None)
    config = PPOConfig(
        batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2, adap_kl_ctrl=False, kl_penalty="mse",
        use_score_scaling=True, use_score_norm=True, early_stopping=True, target_kl=0.5, log_with="tensorboard",
    ).ours(1)  # fmt: skip
    assert (config.num_mini_batches, config.kl_target, config.kl_estimator) == (2, None, "k2")
    assert (config.normalize_scores, config.early_stop_kl, config.report_to) == (
        "shift_and_scale", 0.5, ("tensorboard",)
    )  # fmt: skip


def test_an_optimizer_of_the_script_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="optimizer: leave it out"):
        PPOTrainer(PPOConfig(use_cpu=True), tiny_causal_lm(layers=1), None, byte_tokenizer(), optimizer=object())


def test_what_samples_otherwise_is_told(trainer):
    with pytest.warns(UserWarning, match="step takes log-probs of the whole distribution"):
        trainer.generate(QUERIES, max_new_tokens=1, do_sample=True, temperature=0.5)
    with pytest.warns(UserWarning, match="greedy"):
        trainer.generate(QUERIES, max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.generate(QUERIES, max_new_tokens=1, **SAMPLED)
