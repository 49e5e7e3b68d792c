"""The token embedding: gradients added where they lie are those of torch, and need no memory for the vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from nearstep.models.distribution import Sampling
from nearstep.models.forward.embedding import TokenEmbedding
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.roles import make_critic, make_policy
from tests.memory import peak_bytes
from tests.models.test_forward import ROWS, rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm, tiny_scalar_model

TOKENS = torch.tensor([3, 1, 3, 0, 3, 2])


def table(**options):
    embedding = nn.Embedding(5, 2, dtype=torch.float64, **options)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(10.0).view(5, 2))
    return embedding


def test_rows_of_the_tokens_and_the_sum_of_their_gradients():
    embedding = table()
    rows = TokenEmbedding.of(embedding).rows(TOKENS)
    assert rows.tolist() == [[6, 7], [2, 3], [6, 7], [0, 1], [6, 7], [4, 5]]
    (rows * torch.tensor([1.0, 2, 4, 8, 16, 32])[:, None]).sum().backward()
    assert embedding.weight.grad.tolist() == [[8, 8], [2, 2], [32, 32], [21, 21], [0, 0]]


def test_gradients_add_up_over_micro_batches():
    embedding = table()
    for _ in range(3):
        TokenEmbedding.of(embedding).rows(TOKENS).sum().backward()
    assert embedding.weight.grad.tolist() == [[3, 3], [3, 3], [3, 3], [9, 9], [0, 0]]


def test_the_padding_token_learns_nothing_as_in_torch():
    ours, theirs = table(padding_idx=3), table(padding_idx=3)
    TokenEmbedding.of(ours).rows(TOKENS).square().sum().backward()
    functional.embedding(TOKENS, theirs.weight, padding_idx=3).square().sum().backward()
    assert ours.weight.grad.tolist() == theirs.weight.grad.tolist()
    assert ours.weight.grad[3].tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_what_does_more_than_look_up_is_left_to_torch(options):
    assert TokenEmbedding.of(nn.Embedding(5, 2, **options)) is None


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 3 * super().forward(ids)


class Squared(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).square()


def test_a_factor_is_found_and_its_gradient_is_scaled():
    module = Scaled(5, 2)
    rows = TokenEmbedding.of(module).rows(TOKENS)
    assert torch.equal(rows, module(TOKENS))
    rows.sum().backward()
    assert module.weight.grad.tolist() == [[3, 3], [3, 3], [3, 3], [9, 9], [0, 0]]


def test_what_is_no_factor_is_left_to_its_family():
    model = tiny_causal_lm()
    model.set_input_embeddings(Squared(258, 32))
    assert make_policy(model).embedding is None


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2", "qwen3", "mistral", "gemma2", "gemma3_text", "cohere"])
def test_gradients_of_every_family_are_those_of_torch(kind):
    def gradients(in_place):
        policy = make_policy(family(kind).double())
        if in_place:
            assert policy.embedding is not None
        else:
            policy = replace(policy, embedding=None)
        for part in (ROWS[:2], ROWS[2:]):
            rollout_logprobs(policy, rollout_of(part), Sampling(0.7)).sampled.square().sum().backward()
        return {name: parameter.grad for name, parameter in policy.model.named_parameters()}

    ours, theirs = gradients(True), gradients(False)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-9)


def test_gradients_of_a_critic_are_those_of_torch():
    def gradient(in_place):
        critic = make_critic(tiny_scalar_model(dtype=torch.float64))
        critic = critic if in_place else replace(critic, embedding=None)
        rollout_values(critic, rollout_of(ROWS)).before_actions.square().sum().backward()
        return critic.trunk.get_input_embeddings().weight.grad

    torch.testing.assert_close(gradient(True), gradient(False), atol=1e-12, rtol=0)


def test_a_frozen_embedding_gets_no_gradient():
    policy = make_policy(tiny_causal_lm())
    policy.embedding.module.weight.requires_grad_(False)
    rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled.sum().backward()
    assert policy.embedding.module.weight.grad is None


def test_a_hook_on_the_module_is_still_called():
    policy, seen = make_policy(tiny_causal_lm()), []
    policy.embedding.module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    rollout_logprobs(policy, rollout_of(ROWS), Sampling())
    assert len(seen) == 1


def test_no_gradient_of_the_whole_vocabulary_is_made_beside_the_one_that_stays():
    def peak(vocabulary):
        critic = make_critic(tiny_scalar_model(vocab_size=vocabulary))
        for parameter in critic.trunk.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rollout = rollout_of(ROWS)
        return peak_bytes(lambda: rollout_values(critic, rollout).before_actions.sum().backward())

    assert peak(4 * 5000) < 1.1 * peak(5000)
