"""Shared prompts: computed once, and every number and gradient is that of rows which share nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.models.attention import interface as attention
from nearstep.models.attention.interface import Segment
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.forward.layout import PaddedRows
from nearstep.models.forward.packing import pack
from nearstep.models.roles import make_critic, make_policy
from tests.models.test_forward import rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm, tiny_scalar_model

F64 = torch.float64
PROMPT, OTHER = [5, 6, 7, 8, 9], [5, 6, 7, 8, 4]
GROUP = [(PROMPT, [10, 11]), (PROMPT, [12]), (PROMPT, [13, 14, 15, 16])]
ROWS = [([1, 2, 3], [4]), *GROUP, (OTHER, [10, 11]), ([20, 21], [22, 23, 24]), ([20, 21], [25])]
FAMILIES = [
    ("qwen3", {}), ("mistral", {"sliding_window": 4}), ("gemma2", {"sliding_window": 4}),
    ("gemma3_text", {"sliding_window": 4}), ("olmo2", {}), ("phi3", {}),
]  # fmt: skip


def pack_rollout(rollout):
    return pack(rollout.tokens, rollout.row_lengths, rollout.prompt_lengths)


def test_layout_by_hand():
    packed = pack_rollout(rollout_of([([1], [2]), ([5, 6], [7]), ([5, 6], [8, 9])]))
    assert packed.tokens.tolist() == [1, 2, 5, 6, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 2, 3]
    assert packed.places.tolist() == [0, 1, 2, 3, 4, 2, 3, 5, 6]
    assert packed.plan.segments == (Segment(2), Segment(2), Segment(1, prefix=1), Segment(2, prefix=1))


def test_rows_without_a_response_have_no_segment_of_their_own():
    packed = pack_rollout(rollout_of([([5, 6], []), ([5, 6], [7]), ([5, 6], [])]))
    assert packed.tokens.tolist() == [5, 6, 7]
    assert packed.plan.segments == (Segment(2), Segment(1, prefix=0))
    assert packed.places.tolist() == [0, 1, 0, 1, 2, 0, 1]


@given(
    st.lists(st.tuples(st.sampled_from([(1,), (1, 1), (2, 1)]), st.lists(st.integers(1, 3), max_size=3)), min_size=1)
)
def test_every_token_is_found_where_it_is_computed(rows):
    rollout = rollout_of([(list(prompt), response) for prompt, response in rows])
    packed = pack_rollout(rollout)
    assert torch.equal(packed.tokens[packed.places], rollout.tokens)
    places = [place for prompt, response in rows for place in range(len(prompt) + len(response))]
    assert packed.positions[packed.places].tolist() == places
    assert sum(segment.length for segment in packed.plan.segments) == len(packed.tokens)


def everything(policy, critic, rollouts):
    """Log-probs, entropies, values, and the gradients of a loss in which every number has a weight of its own."""
    found, first_action, first_row = [], 0, 0
    for rollout in rollouts:
        logprobs = rollout_logprobs(policy, rollout, Sampling(0.7), entropy_gradient=True)
        values = rollout_values(critic, rollout)
        weights = torch.arange(first_action, first_action + len(rollout.logprobs), dtype=torch.float64).cos()
        of_rows = torch.arange(first_row, first_row + len(rollout), dtype=torch.float64).sin() + 2
        loss = (weights * (logprobs.sampled + logprobs.entropy + values.before_actions.square())).sum()
        (loss + (of_rows * values.final).sum()).backward()
        found.append(torch.stack([logprobs.sampled, logprobs.entropy, values.before_actions]).detach())
        first_action, first_row = first_action + len(rollout.logprobs), first_row + len(rollout)
    models = (policy.model, critic.model)
    gradients = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    return [torch.cat(found, dim=1), *gradients]


def assert_sharing_changes_nothing(make, *, exact):
    """`exact` to float64. Families with RMSNorm compute it in float32 always, and sum siblings before or after it."""
    rows = ROWS
    whole = rollout_of(rows)
    alone = [whole.select(torch.tensor([row])) for row in range(len(rows))]
    assert len(pack_rollout(whole).tokens) < len(whole.tokens)
    together, apart = everything(*make(), [whole]), everything(*make(), alone)
    assert len(together) == len(apart) > 20
    for ours, plain in zip(together, apart, strict=True):
        scale = float(plain.abs().max())
        torch.testing.assert_close(ours, plain, atol=(1e-11 if exact else 1e-5) * max(scale, 1e-3), rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prompts_give_the_numbers_and_gradients_of_rows_alone(kind, checkpointing):
    def make():
        policy = make_policy(tiny_causal_lm(kind, dtype=torch.float64), checkpointing=checkpointing)
        critic = make_critic(tiny_scalar_model(kind, dtype=torch.float64), checkpointing=checkpointing)
        return policy, critic

    assert_sharing_changes_nothing(make, exact=kind != "llama")


@pytest.mark.parametrize(("kind", "changes"), FAMILIES)
def test_windows_and_caps_see_through_a_shared_prompt(kind, changes):
    assert_sharing_changes_nothing(
        lambda: (make_policy(family(kind, **changes).double()), make_critic(tiny_scalar_model(dtype=torch.float64))),
        exact=False,
    )


def test_a_leak_by_one_position_is_caught(monkeypatch):
    """The equality above fails where a response's first token does not see the prompt's last, or sees its sibling."""
    plain = attention.attend_causally
    # Made before the bug is planted: a model that is made after it is proved wrong, and padded.
    made = iter([(make_policy(tiny_causal_lm(dtype=F64)), make_critic(tiny_scalar_model(dtype=F64))) for _ in "12"])

    def shifted(query, key, value, layer):
        return (
            plain(query, key.roll(1, dims=2), value, layer)
            if query.shape[2] < key.shape[2]
            else plain(query, key, value, layer)
        )

    monkeypatch.setattr(attention, "attend_causally", shifted)
    with pytest.raises(AssertionError, match="not close"):
        assert_sharing_changes_nothing(lambda: next(made), exact=False)
    assert isinstance(make_policy(tiny_causal_lm()).layout, PaddedRows)


@settings(max_examples=15)
@given(st.permutations(range(len(ROWS))))
def test_order_changes_nothing_also_where_it_parts_a_group(order):
    policy = make_policy(tiny_causal_lm(dtype=torch.float64))
    rollout = rollout_of(ROWS)
    expected = rollout_logprobs(policy, rollout, Sampling()).sampled.split(rollout.action_counts.tolist())
    found = rollout_logprobs(policy, rollout.select(torch.tensor(order)), Sampling()).sampled
    torch.testing.assert_close(found, torch.cat([expected[row] for row in order]), atol=1e-10, rtol=0)


def test_no_response_sees_its_sibling():
    """Changing every token of a sibling changes nothing, to the last bit."""
    policy = make_policy(tiny_causal_lm())
    one = rollout_logprobs(policy, rollout_of([(PROMPT, [10, 11]), (PROMPT, [12, 13])]), Sampling()).sampled
    two = rollout_logprobs(policy, rollout_of([(PROMPT, [90, 91]), (PROMPT, [12, 13])]), Sampling()).sampled
    assert torch.equal(one[2:], two[2:])
    assert not torch.equal(one[:2], two[:2])


def test_a_prompt_that_differs_in_its_last_token_is_not_shared():
    rows = [(PROMPT, [10]), (OTHER, [10])]
    assert len(pack_rollout(rollout_of(rows)).tokens) == 12
