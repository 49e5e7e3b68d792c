"""Memory of a process: every byte of a small Llama worked out by hand, and what more processes do to it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from nearstep.models.classifier import new_scalar_model
from nearstep.planning.held import gradient_terms, held_always
from nearstep.planning.memory import FREED, HOLES, PROGRAM_BYTES, peak_of, stages
from nearstep.planning.mesh import PlannedMesh
from nearstep.planning.passes import pass_bytes
from nearstep.planning.quantities import PassBytes, PlannedNetwork, PlannedRows
from nearstep.planning.run import PlannedRun
from nearstep.planning.sizes import packed_weights, size_of
from tests.tiny import tiny_config

# 32 wide, 4 heads, keys and values 16 wide, 48 within, 2 layers, 258 tokens, the head not tied.
EMBEDDING = 258 * 32
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
POLICY = 2 * EMBEDDING + 2 * LAYER + 32
CRITIC = EMBEDDING + 2 * LAYER + 32 + 32
# Of a layer autograd keeps: twice the states, scaled and normed, with one number for the norm; query, key, value,
# output and one number a head for attention, and the output joined; gate, its activation, up, and their product.
LAYER_NUMBERS = 2 * (3 * 32 + 1) + (3 * 32 + 2 * 16 + 4) + 4 * 48
# Outside of layers: the last norm, cosines and sines, and the ids of 8 bytes.
OUTSIDE_NUMBERS = (3 * 32 + 1) + 2 * 8 + 2
ROWS = PlannedRows(rows=4, prompt=10, response=6, micro_rows=4, micro_tokens=16384, forward_rows=64)
TOKENS = 4 * 16


def meta(make, dtype):
    with torch.device("meta"):
        return make(dtype)


@cache
def networks(dtype=torch.float32):
    config = tiny_config()
    policy = meta(lambda dtype: AutoModelForCausalLM.from_config(config, dtype=dtype), dtype)
    critic = meta(lambda dtype: new_scalar_model(config, dtype), dtype)
    passes = pass_bytes(config, dtype.itemsize, autocast=False, is_gpu=False)
    shared = {"name": "tiny", "passes": passes, "width": 32, "attention_width": 32}
    sizes = size_of(policy, config, policy.get_output_embeddings(), set()), size_of(critic, config, None, set())
    frozen = replace(sizes[0], weights=tuple(replace(each, trained=False) for each in sizes[0].weights))
    return (
        PlannedNetwork("policy", size=sizes[0], vocabulary=258, trains=True, **shared),
        PlannedNetwork("reference", size=frozen, vocabulary=258, **shared),
        PlannedNetwork("value", size=sizes[1], trains=True, **shared),
    )


@pytest.fixture(scope="module")
def run():
    return PlannedRun(networks(), ROWS, PlannedMesh(), is_gpu=False)


def by_what(stage):
    return {(term.role, term.what): term.bytes for term in stage.terms}


def named(run, name):
    return by_what(next(stage for stage in stages(run) if stage.name == name))


def test_weights_are_counted_without_weights(run):
    policy, reference, value = (network.size for network in run.networks)
    assert (policy.count, reference.count, value.count) == (POLICY, POLICY, CRITIC)
    assert (policy.trained, reference.trained, value.trained) == (POLICY, 0, CRITIC)
    assert policy.layer_weights == LAYER
    assert policy.outside_weights == 2 * EMBEDDING + 32
    assert policy.token_weights == 2 * LAYER + 32
    assert policy.head_weights == EMBEDDING


def test_a_tied_head_counts_once_and_is_multiplied_with_all_the_same():
    config = tiny_config()
    config.tie_word_embeddings = True
    model = meta(lambda dtype: AutoModelForCausalLM.from_config(config, dtype=dtype), torch.float32)
    model.tie_weights()
    size = size_of(model, config, model.get_output_embeddings(), set())
    assert size.count == POLICY - EMBEDDING
    assert size.head_weights == EMBEDDING
    assert size.token_weights == 2 * LAYER + 32


def test_what_a_pass_keeps_of_a_token(run):
    passes = run.policy.passes
    assert passes.is_traced
    assert passes.layer == 4 * LAYER_NUMBERS
    assert passes.outside == 4 * OUTSIDE_NUMBERS
    assert passes.states == 4 * 32
    assert passes.largest == 4 * 48
    assert passes.cache == 4 * 2 * 2 * 16
    assert passes.kept() == 4 * (2 * LAYER_NUMBERS + OUTSIDE_NUMBERS)
    assert passes.kept(every=1) == 4 * (2 * 32 + OUTSIDE_NUMBERS)


def test_every_term_where_the_logits_of_the_policy_go_back(run):
    actions = 4 * 6
    assert named(run, "logits of the policy") == {
        ("policy", "weights"): 4 * POLICY,
        ("policy", "moments"): 8 * POLICY,
        ("reference", "weights"): 4 * POLICY,
        ("value", "weights"): 4 * CRITIC,
        ("value", "moments"): 8 * CRITIC,
        ("policy", "activations"): TOKENS * 4 * (2 * LAYER_NUMBERS + OUTSIDE_NUMBERS),
        ("policy", "logits of a chunk"): actions * 258 * (4 + 4 + 3 * 4),
        ("policy", "states under the head"): 2 * actions * 32 * 4,
        ("policy", "gradient of the head"): 4 * EMBEDDING,
        ("policy", FREED): 4 * POLICY,
        ("value", FREED): 4 * CRITIC,
        ("policy", HOLES): 2 * POLICY,
        ("value", HOLES): 2 * CRITIC,
        ("program", "prompts, tokenizer, reports"): PROGRAM_BYTES,
    }


def test_gradients_of_the_policy_are_there_while_the_critic_learns(run):
    run = replace(run, is_gpu=True)
    back = named(run, "the value goes back")
    assert back["policy", "gradients"] == 4 * POLICY
    assert ("value", "gradients") not in back
    assert named(run, "the value has gone back")["value", "gradients"] == 4 * CRITIC
    several = replace(run, rows=replace(ROWS, micro_rows=2))
    assert named(several, "logits of the policy")["value", "gradients"] == 4 * CRITIC


def test_a_critic_that_trains_after_the_policy_finds_no_gradients_of_it(run):
    after = replace(run, rows=replace(ROWS, critic_epochs=1))
    assert ("policy", "gradients") not in named(after, "the value goes back")
    assert ("policy", FREED) not in named(replace(after, is_gpu=True), "the value goes back")


def test_keys_and_values_of_all_rows_are_kept_while_they_are_generated(run):
    decoding = named(run, "decoding")
    assert decoding["policy", "keys and values"] == TOKENS * 4 * 2 * 2 * 16
    assert decoding["policy", "logits"] == 4 * 258 * (4 + 3 * 4)


def test_weights_in_bfloat16_have_masters_and_gradients_in_float32():
    run = PlannedRun(networks(torch.bfloat16), ROWS, PlannedMesh(), is_gpu=False)
    held = {term.what: term.bytes for term in held_always(run, run.policy)}
    assert held == {"weights": 2 * POLICY, "float32 masters": 4 * POLICY, "moments": 8 * POLICY}
    assert gradient_terms(run, run.policy)[0].bytes == 4 * POLICY
    gone_back = named(run, "the policy has gone back")
    assert gone_back["policy", "gradients before masters take them"] == 2 * POLICY
    without = replace(run, masters=False)
    assert {term.what: term.bytes for term in held_always(without, run.policy)} == {
        "weights": 2 * POLICY, "moments": 4 * POLICY,
    }  # fmt: skip


def test_pieces_of_bfloat16_are_the_masters():
    run = PlannedRun(networks(torch.bfloat16), ROWS, PlannedMesh(shard=2), is_gpu=False)
    held = {term.what: term.bytes for term in held_always(run, run.policy)}
    assert held == {"weights": 4 * POLICY // 2, "moments": 8 * POLICY // 2}
    assert {term.what: term.bytes for term in held_always(run, run.networks[1])} == {"weights": 2 * POLICY // 2}


def test_pieces_are_gathered_whole_for_a_rollout_and_by_layer_while_learning(run):
    sharded = replace(run, mesh=PlannedMesh(shard=4))
    outside = 2 * EMBEDDING + 32
    assert named(sharded, "decoding")["policy", "weights gathered"] == 4 * (POLICY + outside)
    assert named(sharded, "logits of the policy")["policy", "layers gathered"] == 4 * (outside + 3 * LAYER)
    assert named(sharded, "logits of the policy")["policy", "weights"] == POLICY
    whole = replace(run.policy, whole=True)
    kept = replace(sharded, networks=(whole, *run.networks[1:]))
    assert named(kept, "decoding")["policy", "weights"] == 4 * POLICY
    assert ("policy", "weights gathered") not in named(kept, "decoding")


def test_stages_of_zero_divide_moments_then_gradients_then_weights(run):
    def parts(stage):
        sharded = replace(run, mesh=PlannedMesh(shard=2, zero_stage=stage))
        held = {term.what: term.bytes for term in held_always(sharded, run.policy)}
        names = ("weights", "float32 masters", "moments")
        return *(held[name] for name in names), gradient_terms(sharded, run.policy)[0].bytes

    # The engine keeps float32 weights of its own beside those that compute, whatever their type.
    assert parts(2) == (4 * POLICY, 2 * POLICY, 4 * POLICY, 2 * POLICY)
    assert parts(3) == (2 * POLICY, 2 * POLICY, 4 * POLICY, 2 * POLICY)


def test_moments_in_a_byte_each():
    run = PlannedRun(networks(), ROWS, PlannedMesh(), is_gpu=False, eight_bit=True)
    held = {term.what: term.bytes for term in held_always(run, run.policy)}
    small = 5 * 32 + 2 * 2 * 32 * 16 + 2 * 2 * 32 * 32 + 2 * 3 * 32 * 48  # all but embedding and head lie below 4096
    assert small == POLICY - 2 * EMBEDDING
    assert held["moments"] == round(2 * EMBEDDING * 2 * (1 + 4 / 256) + small * 8)


def test_weights_in_4_bits_and_their_scales():
    config = tiny_config()
    model = meta(lambda dtype: AutoModelForCausalLM.from_config(config, dtype=dtype), torch.bfloat16)
    size = size_of(model, config, None, set(), packed_weights(model, nested=False))
    linear = 2 * (LAYER - 2 * 32)
    assert size.bytes == 2 * (POLICY - linear) + linear * (1 / 2 + 4 / 64)
    assert size.bytes_each == 2
    assert size.largest_packed == 32 * 48


def test_every_second_layer_computed_again(run):
    # The first of two: its states alone are kept, and of the other all.
    assert run.policy.passes.kept(every=2) == 4 * (32 + LAYER_NUMBERS + OUTSIDE_NUMBERS)
    assert run.policy.passes.recomputed(2) == 1


def test_tokens_of_a_pass_lie_over_partners(run):
    alone = named(replace(run, mesh=PlannedMesh(2)), "logits of the policy")
    rows = replace(ROWS, micro_rows=2)  # as many rows come into a pass of two
    together = named(replace(run, mesh=PlannedMesh(2, sequence=2), rows=rows), "logits of the policy")
    assert together["policy", "activations"] == alone["policy", "activations"] / 2
    decoding = named(replace(run, mesh=PlannedMesh(2, sequence=2)), "decoding")
    assert decoding["policy", "keys and values"] == TOKENS * 4 * 2 * 2 * 16  # each process's own rows, whole


def test_layers_in_common_divide_weights_caches_and_what_is_within(run):
    divided = replace(run.policy.size, divided_weights=POLICY - 5 * 32)  # norms are on both
    policy = replace(run.policy, size=divided, passes=run.policy.passes.dividing(0.5))
    both = replace(run, networks=(policy, *run.networks[1:]), mesh=PlannedMesh(tensor=2))
    held = {term.what: term.bytes for term in held_always(both, policy)}
    assert held["weights"] == 4 * ((POLICY - 5 * 32) / 2 + 5 * 32)
    assert named(both, "decoding")["policy", "keys and values"] == TOKENS * 4 * 2 * 16
    kept = 4 * (2 * LAYER_NUMBERS * 0.75 + OUTSIDE_NUMBERS)
    assert named(both, "logits of the policy")["policy", "activations"] == TOKENS * kept


def test_what_processes_divide_of_a_layer(run):
    from nearstep.planning.passes import inner_share

    # Query, key, value, output twice, one number a head, and four of the inner width are divided; the norms are not.
    inner = 3 * 32 + 2 * 16 + 4 + 4 * 48
    assert inner_share(tiny_config(), run.policy.passes, 4, is_gpu=False) == pytest.approx(inner / LAYER_NUMBERS)


def test_idle_roles_are_not_there_while_others_compute(run):
    on_gpu = replace(run, is_gpu=True, offloaded=("reference", "value"))
    assert ("reference", "weights") not in named(on_gpu, "decoding")
    assert ("value", "moments") not in named(on_gpu, "decoding")
    scoring = named(on_gpu, "scores of the reference")
    assert scoring["reference", "weights"] == 4 * POLICY
    assert scoring["value", "moments"] == 8 * CRITIC  # back once rows have their rewards
    update = named(on_gpu, "optimizer step")
    assert ("reference", "weights") not in update
    assert update["value", "moments"] == 8 * CRITIC


def large(dtype_bytes=2):
    """About 7 B weights, as counted and traced once."""
    passes = PassBytes(32, 164e3, 33e3, 8192.0, 92e3, 22016.0, 524288.0, 84.0, 40.0)
    policy = networks()[0]
    size = replace(
        policy.size,
        weights=(replace(policy.size.weights[0], count=6_738_415_616, bytes_each=dtype_bytes),),
        layer_weights=202_383_360, outside_weights=262_148_096, token_weights=6_476_271_616, head_weights=131_072_000,
    )  # fmt: skip
    return replace(policy, size=size, passes=passes, width=4096, attention_width=4096, vocabulary=32_000)


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_more_pieces_never_need_more_memory(stage):
    policy = large()
    run = PlannedRun((policy, replace(policy, role="value", vocabulary=0)), ROWS, PlannedMesh())
    peaks = [
        peak_of(stages(replace(run, mesh=PlannedMesh(shard=shard, zero_stage=stage)))).bytes
        for shard in (1, 2, 4, 8, 64, 512, 1024)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_fewer_rows_and_recomputed_layers_never_need_more_memory(run):
    peaks = [
        peak_of(stages(replace(run, rows=replace(ROWS, rows=64, micro_rows=rows, forward_rows=rows)))).bytes
        for rows in (32, 16, 8, 4, 2, 1)
    ]
    assert peaks == sorted(peaks, reverse=True)
    kept, again = (peak_of(stages(replace(run, every=every))).bytes for every in (0, 1))
    assert again < kept


def test_experts_lie_over_more_processes_than_the_rest():
    policy = large()
    size = replace(policy.size, expert_weights=policy.size.count // 2)
    run = PlannedRun((replace(policy, size=size),), ROWS, PlannedMesh(replicate=4, expert=4))
    held = {term.what: term.bytes for term in held_always(run, run.policy)}
    assert held["weights"] == pytest.approx(size.bytes * (1 / 2 + 1 / 8))
