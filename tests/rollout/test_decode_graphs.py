"""Decoding steps from graphs: the same rollouts as without, whatever comes and goes."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout import decode_graphs, slot_cache
from nearstep.rollout.decode_graphs import rows_captured, width_captured
from tests.models.test_roles_and_loading import family
from tests.rollout.graphed import FAMILIES, assert_same, decodings, model_of, play
from tests.rollout.tape import Tape
from tests.tiny import tiny_causal_lm

pytestmark = pytest.mark.slow  # dear, and the parts have tests of their own


@pytest.fixture(autouse=True)
def narrow_steps(monkeypatch):
    """So that short rows pass through several widths."""
    monkeypatch.setattr(decode_graphs, "WIDTH_STEP", 6)


@pytest.mark.parametrize(("kind", "changes"), FAMILIES)
def test_replayed_steps_give_the_same_rollout(kind, changes):
    policy, tape = make_policy(model_of(kind, changes).double()), Tape()
    rollout = play(policy, tape.capture)
    assert_same(rollout, play(policy))
    trained = rollout_logprobs(policy, rollout, Sampling(0.9)).sampled
    torch.testing.assert_close(rollout.logprobs, trained, atol=1e-4, rtol=0)  # some families have float32 norms
    assert tape.replays > 2 * tape.captures > 0


def test_experts_are_chosen_anew_at_every_replay():
    policy, tape = make_policy(family("qwen3_moe", num_experts=8, num_experts_per_tok=2)), Tape()
    assert_same(play(policy, tape.capture), play(policy), tolerance=1e-4)
    assert tape.captures > 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_comes_and_goes_replayed_steps_give_the_same_rollout(data):
    """Rows that enter and leave at any time, of any lengths, several of one prompt."""
    kind = data.draw(st.sampled_from(["llama", "mistral"]))
    distinct = data.draw(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=9), min_size=1, max_size=6))
    prompts = data.draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=14))
    limits = data.draw(st.lists(st.integers(1, 14), min_size=len(prompts), max_size=len(prompts)))
    changes = {
        "max_rows": data.draw(st.integers(1, 9)),
        "max_tokens": data.draw(st.integers(9, 40)),
        "greedy": data.draw(st.booleans()),
        "response_length": 14,
    }
    policy = make_policy(model_of(kind, {"sliding_window": 4} if kind == "mistral" else {}).double())
    found, expected = (
        play(policy, capture, prompts=prompts, limits=limits, **changes) for capture in (Tape().capture, None)
    )
    assert_same(found, expected)


def visible_everywhere(query, key, value, visible, layer):
    return slot_cache_attend(query, key, value, torch.ones_like(visible), layer)


def visible_one_further(query, key, value, visible, layer):
    return slot_cache_attend(query, key, value, visible | visible.roll(1, dims=-1), layer)


slot_cache_attend = slot_cache.attend_where


@pytest.mark.parametrize("leak", [visible_everywhere, visible_one_further])
def test_a_place_beyond_a_row_that_is_seen_is_caught(leak, monkeypatch):
    policy = make_policy(tiny_causal_lm(dtype=torch.float64))
    expected = play(policy)
    monkeypatch.setattr(slot_cache, "attend_where", leak)
    with pytest.raises(AssertionError):
        assert_same(play(policy, Tape().capture), expected)


def contents(cache):
    return torch.stack([*cache.keys, *cache.values])


@torch.no_grad()
def test_a_step_with_free_slots_leaves_every_other_place_of_the_cache_alone():
    """Place 0 of a free slot is written; every other place holds what a plain step leaves there."""
    plain, graphed = decodings(make_policy(tiny_causal_lm(dtype=torch.float64)), Tape().capture)
    before = contents(graphed.cache).clone()
    for batch in (plain, graphed):
        batch.step(torch.tensor([20, 21, 22]))
    found, expected = contents(graphed.cache), contents(plain.cache)
    assert (found[:, 3, :, 0] != before[:, 3, :, 0]).any()  # four rows were captured
    found[:, 3, :, 0] = expected[:, 3, :, 0]
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_slots_written_while_free_do_not_show_in_rows_that_enter_or_move_there():
    tape = Tape()
    plain, graphed = decodings(make_policy(tiny_causal_lm(dtype=torch.float64)), tape.capture)

    def step(*tokens):
        logits = [batch.step(torch.tensor(tokens)) for batch in (plain, graphed)]
        torch.testing.assert_close(*logits)

    step(20, 21, 22)
    for batch in (plain, graphed):
        batch.leave({0})  # the last row moves into slot 0, slot 2 is free
    step(23, 24)
    step(25, 26)
    for batch in (plain, graphed):
        batch.leave({1})
    step(27)
    for batch in (plain, graphed):
        batch.enter([3, 4, 5], [[13], [14, 15], [13]])
    for token in range(30, 36):
        step(token, token + 10, token + 20, token + 30)
    assert tape.captures > 3


@torch.no_grad()
@pytest.mark.parametrize("outer", [False, True])
def test_replays_cast_the_weights_as_they_are(outer):
    """Where autocast has cast a weight before, its copy must not be what a graph computes with."""
    policy = make_policy(tiny_causal_lm(), autocast=True)
    with torch.autocast("cpu", dtype=torch.bfloat16) if outer else nullcontext():
        plain, graphed = decodings(policy, Tape().capture)
        for factor in (1, -1, 2):
            policy.head.linear.weight.mul_(factor)
            if outer:
                torch.clear_autocast_cache()
            before = list(graphed.lengths)
            expected, found = (batch.step(torch.tensor([20, 21, 22])) for batch in (plain, graphed))
            torch.testing.assert_close(found, expected.float(), atol=0.05 * float(expected.abs().max()), rtol=0)
            graphed.lengths, plain.lengths = before, list(before)


def count_captures(policy, **changes):
    sizes = []

    def capture(work):
        sizes.append(work.args)
        return work  # which runs it again

    play(policy, capture, **changes)
    return sizes


def test_each_size_is_captured_once_and_when_it_is_needed():
    prompts, limits = [[1, 2]] * 5, [2, 4, 6, 8, 12]
    policy = make_policy(tiny_causal_lm())
    # Rows live 2, 3, … tokens after the prompt; widths end at multiples of 6 and at 2 + 12 places.
    found = count_captures(policy, prompts=prompts, limits=limits, stop_ids=(), max_rows=5, response_length=12)
    assert found == [(5, 6), (4, 6), (4, 12), (2, 12), (1, 12), (1, 14)]


def test_sizes_by_hand(monkeypatch):
    assert [rows_captured(live, 48) for live in (1, 2, 3, 4, 5, 32, 33, 48)] == [1, 2, 4, 4, 8, 32, 48, 48]
    assert [width_captured(width, 15) for width in (1, 6, 7, 12, 13, 15)] == [6, 6, 12, 12, 15, 15]
    monkeypatch.undo()
    assert [width_captured(width, 700) for width in (1, 256, 257, 513)] == [256, 256, 512, 700]


@given(st.integers(1, 200), st.data())
def test_sizes_hold_what_they_must_and_fit_the_cache(slots, data):
    live = data.draw(st.integers(1, slots))
    assert live <= rows_captured(live, slots) <= min(slots, 2 * live - 1)
    assert live <= width_captured(live, slots) <= min(slots, live + 5)


def test_graphs_end_with_the_rollout():
    """Without help of the garbage collector: their memory is free for the update."""
    seen = []

    class Graph:
        def __init__(self, work):
            self.output = work.func.__self__.output

        def replay(self):
            self.output.zero_()

    def capture(work):
        graph = Graph(work)
        seen.extend([weakref.ref(graph), weakref.ref(graph.output)])
        return graph.replay

    gc.disable()
    try:
        play(make_policy(tiny_causal_lm()), capture)
        assert len(seen) > 2
        assert not any(reference() is not None for reference in seen)
    finally:
        gc.enable()
