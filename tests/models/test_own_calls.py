"""A user's own calls of a model that plays a role here give what they gave before, bit for bit."""

import copy
import json
from threading import Barrier, Thread

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.forward.own_pass import packed_attention
from nearstep.models.reward_model import make_reader
from nearstep.models.roles import make_critic, make_policy
from tests.models.test_forward import ROWS, rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm, tiny_config, tiny_scalar_model

GEMMA2 = {"sliding_window": 3, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])


def own_calls(model):
    """Plain, with left padding, the trunk alone, greedy with and without a cache."""
    with torch.no_grad():
        found = [
            model(PADDED).logits,
            model(PADDED, attention_mask=MASK).logits,
            model.base_model(PADDED, attention_mask=MASK).last_hidden_state,
        ]
        for cache in (True, False):
            options = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache}
            found.append(model.generate(PADDED, attention_mask=MASK, **options))
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes", "attention"),
    [
        ("llama", {}, "sdpa"),
        ("llama", {}, "eager"),
        ("mistral", {"sliding_window": 3}, "sdpa"),
        ("gemma2", GEMMA2, "eager"),  # sdpa knows no soft cap
        ("opt", {}, "sdpa"),
        ("qwen3_moe", {}, "eager"),
    ],
)
def test_a_policy_answers_its_user_as_before(kind, changes, attention, checkpointing):
    model = family(kind, **changes).eval()
    model.set_attn_implementation(attention)
    before = own_calls(model)
    policy = make_policy(model, checkpointing=checkpointing)
    rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, own_calls(model), strict=True))
    assert model.config._attn_implementation == attention
    if attention == "eager":
        assert model(PADDED, output_attentions=True).attentions[0].shape == (2, 4, 7, 7)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_critic_and_a_reward_model_answer_their_user_as_before(kind):
    model = tiny_scalar_model(kind)
    before = model(PADDED, attention_mask=MASK).logits
    rollout_values(make_critic(model), rollout_of(ROWS))
    assert torch.equal(model(PADDED, attention_mask=MASK).logits, before)
    make_reader(model, role="reward_model", pad_token_id=257).rewards([[[1, 2], [3]]])
    assert torch.equal(model(PADDED, attention_mask=MASK).logits, before)


def test_a_folder_that_a_role_was_saved_to_names_no_attention_of_ours(tmp_path):
    policy = make_policy(tiny_causal_lm())
    with packed_attention(policy.model.config):  # even in the midst of a pass
        policy.model.save_pretrained(tmp_path)
    assert "nearstep" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_a_model_in_two_roles_at_a_time_keeps_both_apart_from_its_user():
    model = tiny_causal_lm()
    before = model(PADDED, attention_mask=MASK).logits
    first, second = make_policy(model), make_policy(model, checkpointing=True)
    alone = rollout_logprobs(first, rollout_of(ROWS), Sampling()).sampled
    assert torch.equal(rollout_logprobs(second, rollout_of(ROWS), Sampling()).sampled, alone)
    assert torch.equal(model(PADDED, attention_mask=MASK).logits, before)


def test_passes_in_several_threads_do_not_put_the_users_attention_on_for_each_other():
    config, meet, seen = tiny_config(), Barrier(2), []
    config._attn_implementation = "eager"

    def first():
        with packed_attention(config):
            meet.wait()
        meet.wait()

    def second():
        meet.wait()  # the first pass runs
        with packed_attention(config):
            meet.wait()  # it has ended
            seen.append(config._attn_implementation)

    threads = [Thread(target=each) for each in (first, second)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert seen == ["nearstep_packed"]
    assert config._attn_implementation == "eager"


def test_training_mode_that_a_user_left_on_brings_no_dropout_into_our_passes():
    policy = make_policy(tiny_causal_lm("gpt_neox"))
    expected = rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled
    policy.model.train()
    assert torch.equal(rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled, expected)
    assert policy.trunk.training
    assert any(module.training for module in policy.model.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("kind", ["llama", "opt"])  # OPT's layers ask their own training mode whether to drop out
def test_recomputed_layers_do_in_the_backward_pass_what_they_did_before(kind):
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(family(kind).double(), checkpointing=checkpointing)
        copied = copy.deepcopy(policy)  # its recomputation must switch its own configuration
        for each in (policy, copied):
            rollout_logprobs(each, rollout_of(ROWS), Sampling()).sampled.sum().backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in each.model.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-10, rtol=1e-10)


def test_layers_run_twice_where_they_are_recomputed_and_once_where_no_gradient_is_asked_for():
    policy, runs = make_policy(tiny_causal_lm(), checkpointing=True), []
    policy.trunk.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled.sum().backward()
    assert runs == [True, True]
    with torch.no_grad():
        rollout_logprobs(policy, rollout_of(ROWS), Sampling())
    assert runs == [True, True, False]


def test_a_user_trains_the_model_in_plain_transformers_afterwards():
    model = AutoModelForSequenceClassification.from_config(tiny_config())
    before = model(PADDED, attention_mask=MASK).logits
    make_critic(model, checkpointing=True)
    model.train()
    logits = model(PADDED, attention_mask=MASK).logits
    logits.sum().backward()
    assert torch.equal(logits, before)
    assert model.config._attn_implementation == "sdpa"
