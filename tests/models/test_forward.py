"""The forward pass: a row gives the same numbers alone, packed, in any order, and as transformers' own forward does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.roles import make_critic, make_policy
from nearstep.types import Rollout
from tests.tiny import tiny_causal_lm, tiny_scalar_model

KINDS = ("llama", "gpt_neox", "gpt2")
ROWS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([3, 3, 3, 3, 3, 3], [1]), ([20, 21], [22, 23, 24])]


def rollout_of(rows):
    tokens = [token for prompt, response in rows for token in prompt + response]
    is_action = [place >= len(prompt) for prompt, response in rows for place in range(len(prompt + response))]
    lengths = [len(prompt + response) for prompt, response in rows]
    return Rollout(
        tokens=torch.tensor(tokens),
        is_action=torch.tensor(is_action),
        row_lengths=torch.tensor(lengths),
        logprobs=torch.zeros(sum(is_action)),
        finished=torch.ones(len(rows), dtype=torch.bool),
        policy_version=torch.ones(len(rows), dtype=torch.long),
    )


def by_hand(model, rows, temperature=1.0):
    """Log-probs through transformers' own forward pass, one row at a time."""
    found = []
    for prompt, response in rows:
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0] / temperature
        places = torch.arange(len(prompt), len(prompt + response)) - 1
        found.append(logits.log_softmax(-1)[places, torch.tensor(response)])
    return torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_what_transformers_gives_alone(kind):
    expected = by_hand(tiny_causal_lm(kind), ROWS, temperature=0.7)
    policy = make_policy(tiny_causal_lm(kind))
    found = rollout_logprobs(policy, rollout_of(ROWS), Sampling(0.7))
    torch.testing.assert_close(found.sampled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_either_side_in_transformers_gives_the_same_r07(kind):
    model = tiny_causal_lm(kind)
    ids = [prompt + response for prompt, response in ROWS]
    width = max(map(len, ids)) + 3
    expected = by_hand(model, ROWS)
    policy_found = rollout_logprobs(make_policy(tiny_causal_lm(kind)), rollout_of(ROWS), Sampling()).sampled
    for left in (True, False):
        padded = torch.tensor([[0] * (width - len(i)) + i if left else i + [0] * (width - len(i)) for i in ids])
        mask = torch.tensor(
            [[0] * (width - len(i)) + [1] * len(i) if left else [1] * len(i) + [0] * (width - len(i)) for i in ids]
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits.log_softmax(-1)
        found = []
        for row, (prompt, response) in enumerate(ROWS):
            start = width - len(ids[row]) if left else 0
            places = start + torch.arange(len(prompt), len(ids[row])) - 1
            found.append(logits[row, places, torch.tensor(response)])
        torch.testing.assert_close(torch.cat(found), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat(found), policy_found, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(st.permutations(range(len(ROWS))))
def test_order_of_rows_changes_nothing(order):
    policy, critic = make_policy(tiny_causal_lm()), make_critic(tiny_scalar_model())
    rollout = rollout_of(ROWS)
    mixed = rollout.select(torch.tensor(order))
    alone = [rollout.select(torch.tensor([row])) for row in order]
    logprobs = rollout_logprobs(policy, mixed, Sampling()).sampled
    values = rollout_values(critic, mixed)
    torch.testing.assert_close(
        logprobs, torch.cat([rollout_logprobs(policy, one, Sampling()).sampled for one in alone]), atol=1e-5, rtol=0
    )
    values_alone = [rollout_values(critic, one) for one in alone]
    torch.testing.assert_close(
        values.before_actions, torch.cat([v.before_actions for v in values_alone]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(values.final, torch.cat([v.final for v in values_alone]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_packed_are_the_sum_of_gradients_alone(kind, checkpointing):
    def gradients(rollouts):
        policy = make_policy(tiny_causal_lm(kind, dtype=torch.float64), checkpointing=checkpointing)
        critic = make_critic(tiny_scalar_model(kind, dtype=torch.float64), checkpointing=checkpointing)
        for rollout in rollouts:
            weights = torch.arange(1.0, len(rollout.logprobs) + 1, dtype=torch.float64)
            if len(rollouts) > 1:
                weights = weights + offsets[id(rollout)]
            (rollout_logprobs(policy, rollout, Sampling(0.7)).sampled * weights).sum().backward()
            (rollout_values(critic, rollout).before_actions * weights).sum().backward()
        models = (policy.model, critic.model)
        return {
            (m, n): p.grad for m, model in enumerate(models) for n, p in model.named_parameters() if p.grad is not None
        }

    whole = rollout_of(ROWS)
    alone = [whole.select(torch.tensor([row])) for row in range(len(ROWS))]
    starts = (whole.action_counts.cumsum(0) - whole.action_counts).tolist()
    offsets = {id(rollout): start for rollout, start in zip(alone, starts, strict=True)}
    packed, single = gradients([whole]), gradients(alone)
    assert packed.keys() == single.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, single[name], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_sees_another(kind):
    """Changing every token of the other rows changes nothing, to the last bit: a leak by one position is caught."""
    policy = make_policy(tiny_causal_lm(kind))
    rows = [([4, 5], [6, 7]), ([8, 9, 10], [11])]
    changed = [([40, 50], [60, 70]), rows[1]]
    one = rollout_logprobs(policy, rollout_of(rows), Sampling())
    two = rollout_logprobs(policy, rollout_of(changed), Sampling())
    assert torch.equal(one.sampled[2:], two.sampled[2:])
    assert not torch.equal(one.sampled[:2], two.sampled[:2])


def test_entropy_by_hand():
    policy = make_policy(tiny_causal_lm())
    found = rollout_logprobs(policy, rollout_of(ROWS[:1]), Sampling(0.7)).entropy
    logits = tiny_causal_lm()(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits[0, 2:] / 0.7
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_bfloat16_models_give_float32_logprobs_and_values():
    policy = make_policy(tiny_causal_lm(dtype=torch.bfloat16))
    critic = make_critic(tiny_scalar_model(dtype=torch.bfloat16))
    assert rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled.dtype == torch.float32
    assert rollout_values(critic, rollout_of(ROWS)).before_actions.dtype == torch.float32


def test_autocast_changes_the_arithmetic_and_not_the_weights():
    plain = rollout_logprobs(make_policy(tiny_causal_lm()), rollout_of(ROWS), Sampling()).sampled
    policy = make_policy(tiny_causal_lm(), autocast=True)
    found = rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled
    assert found.dtype == torch.float32
    assert policy.head.linear.weight.dtype == torch.float32
    assert 0 < (found - plain).abs().max() < 0.1


def test_rows_without_actions_are_allowed():
    rollout = rollout_of([([1, 2, 3], []), ([4], [5])])
    policy, critic = make_policy(tiny_causal_lm()), make_critic(tiny_scalar_model())
    assert rollout_logprobs(policy, rollout, Sampling()).sampled.shape == (1,)
    assert rollout_logprobs(policy, rollout.select(torch.tensor([0])), Sampling()).sampled.shape == (0,)
    assert rollout_values(critic, rollout).final.shape == (2,)
