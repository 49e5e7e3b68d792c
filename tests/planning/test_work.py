"""Operations, bytes sent and seconds of an update, worked out by hand; and which layouts are proposed."""

from dataclasses import replace

import pytest

from nearstep.common.errors import ConfigError
from nearstep.planning.layouts import PlannedLayout, meshes
from nearstep.planning.machines import Machine, named_machine, read_machine, write_machine
from nearstep.planning.mesh import PlannedMesh
from nearstep.planning.proposals import proposals, remedies
from nearstep.planning.quantities import NetworkSize, PassBytes, PlannedNetwork, PlannedRows, Weights
from nearstep.planning.run import PlannedRun
from nearstep.planning.work import forward_flops, times, transfers

PASSES = PassBytes(2, 1000.0, 100.0, 20.0, 500.0, 80.0, 40.0, 10.0, 5.0)
SIZE = NetworkSize((Weights(1000, 4, trained=True),), 300, 400, 600, 0, 100)
POLICY = PlannedNetwork("policy", "p", SIZE, PASSES, width=10, attention_width=8, vocabulary=10, trains=True)
ROWS = PlannedRows(rows=4, prompt=3, response=2, micro_rows=2, micro_tokens=100, forward_rows=4, epochs=2)
CPU = Machine("cpu", 10**6, 1e6, 1e6, 1e6, 1e5, 1e4, 1e-3, is_gpu=False)


def run_of(mesh=PlannedMesh(), **changes):  # noqa: B008 (frozen)
    return PlannedRun((replace(POLICY, **changes),), ROWS, mesh, is_gpu=False)


def test_operations_of_a_forward_pass():
    # 2 for each of 600 weights and 20 tokens, 4 for each of 2 layers × 8 and 30 pairs, 2 for 100 of the head, 8 logits.
    assert forward_flops(POLICY, tokens=20, seen=30, logits=8) == 2 * 600 * 20 + 4 * 2 * 8 * 30 + 2 * 100 * 8


def test_rows_that_share_a_prompt_count_it_once():
    grouped = replace(ROWS, generations=2)
    assert (ROWS.tokens(4), grouped.tokens(4)) == (4 * 5, 2 * 3 + 4 * 2)
    assert (ROWS.seen(1), grouped.seen(2)) == (6 + 6 + 3, 6 + 2 * (6 + 3))


def test_a_pass_has_as_many_rows_as_both_limits_allow():
    assert (ROWS.pass_rows(), ROWS.passes()) == (2, 2)
    assert replace(ROWS, micro_tokens=7).pass_rows() == 1
    assert replace(ROWS, micro_tokens=2).pass_rows() == 1  # a row at least
    assert replace(ROWS, micro_rows=8, minibatches=2).pass_rows() == 2


def test_partners_bring_their_rows_into_one_pass():
    # Each has 4 rows of 5 tokens, of which it may bring 2, and a budget of 8 tokens: 3 rows in 16 tokens.
    rows = replace(ROWS, micro_tokens=8)
    assert (rows.pass_rows(2), rows.passes(2)) == (3, 3)
    run = replace(run_of(PlannedMesh(2, sequence=2)), rows=rows)
    assert (run.pass_rows, run.passes, run.pass_tokens, run.pass_actions) == (3, 3, 8, 3)
    # One row is longer than both budgets together: it alone lies over both.
    assert replace(rows, micro_tokens=2).pass_rows(2) == 1


def test_whole_networks_send_their_gradients_once_a_step():
    (sent,) = transfers(run_of(PlannedMesh(2)))
    assert sent.bytes == 2 * (2 * 1 / 2 * 4 * 1000)  # two steps, a ring of two
    (of_four,) = transfers(run_of(PlannedMesh(4)))
    assert of_four.bytes == 2 * (2 * 3 / 4 * 4 * 1000)
    assert transfers(run_of()) == []


def test_partners_exchange_heads_and_layers_in_common_sum_states():
    run = run_of(PlannedMesh(2, sequence=2))
    sent = next(each for each in transfers(run) if each.what == "heads exchanged")
    # 2 epochs × 20 tokens, 8 wide in 4 bytes, 2 layers: query, key, value and what comes out, there and back, half.
    assert sent.bytes == 2 * 20 * 8 * 4 * 2 * 8 / 2
    divided = {each.phase: each for each in transfers(run_of(PlannedMesh(tensor=2))) if each.what == "states summed"}
    state = 10 * 4 * 2 * 2  # width, bytes, layers, sums of each: a ring of two sends as much as there is
    assert divided["generate"].bytes == state * 20
    assert divided["generate"].messages == 2 * 2 * (2 + 1)  # a pass over prompts, and one for each token
    assert divided["update"].bytes == 2 * state * 20 * 2


def test_an_idle_role_is_brought_from_the_host_once_an_update():
    machine = replace(CPU, is_gpu=True, host_rate=1000.0)
    reference = replace(POLICY, role="reference", trains=False)
    run = replace(run_of(), networks=(POLICY, reference), is_gpu=True, offloaded=("reference",))
    (sent,) = transfers(run)
    assert (sent.phase, sent.bytes, sent.seconds(machine)) == ("score", 4000, 4.0)


def test_pieces_are_sent_before_every_pass_and_on_its_way_back():
    found = {(each.phase, each.what): each.bytes for each in transfers(run_of(PlannedMesh(shard=2)))}
    passes = 2 * 2  # epochs, micro-batches
    assert found == {
        ("generate", "weights gathered"): 4000 / 2,
        ("update", "weights gathered"): 2 * passes * 4000 / 2,
        ("update", "gradients summed"): passes * 4000 / 2,
    }
    copies = transfers(run_of(PlannedMesh(2, 2)))
    assert copies[-1].what == "gradients between copies"
    assert copies[-1].bytes == passes * 2 * 1 / 2 * 4000 / 2


def test_seconds_of_an_update_on_a_processor():
    update = next(each for each in times(run_of(), CPU) if each.phase == "update")
    flops = 2 * 3 * forward_flops(POLICY, ROWS.tokens(4), ROWS.seen(4), 8)
    calls = 3 * 2 * 2 * (2 * 10 + 5) * 1e-3
    assert update.computing == pytest.approx(flops / 1e6 + calls + 2 * 28 * 1000 / 1e6)
    sending = next(each for each in times(run_of(PlannedMesh(2)), CPU) if each.phase == "update")
    assert sending.seconds - sending.computing == pytest.approx(2 * 4000 / 1e4)  # one device in a node: by network


def test_what_is_sent_beside_work_costs_a_gpu_nothing_until_it_is_longer():
    slow, fast = (replace(CPU, is_gpu=True, devices=8, node_rate=rate) for rate in (1.0, 1e9))
    run = replace(run_of(PlannedMesh(shard=2)), is_gpu=True)
    computing = next(each.computing for each in times(run, fast) if each.phase == "update")
    assert next(each.seconds for each in times(run, fast) if each.phase == "update") == computing
    assert next(each.seconds for each in times(run, slow) if each.phase == "update") > 1000


def test_measured_links_stand_in_for_those_of_the_sheet():
    machine = replace(named_machine("h100", 8), link_rates={"2": 10.0, "4": 5.0})
    assert [machine.link(count) for count in (2, 3, 4, 8)] == [10.0, 5.0, 5.0, 5.0]
    assert machine.link(16) == machine.network_rate * machine.attained_links


def test_a_machine_is_read_as_it_was_written(tmp_path):
    machine = replace(CPU, link_rates={"2": 1e9}, measured=True)
    write_machine(machine, tmp_path / "deep" / "machine.json")
    assert read_machine(tmp_path / "deep" / "machine.json") == machine
    (tmp_path / "other.json").write_text('{"speed": 1}')
    with pytest.raises(ConfigError, match="nearstep doctor --measure"):
        read_machine(tmp_path / "other.json")


def test_meshes_are_those_that_the_settings_accept():
    node = replace(CPU, devices=4)
    found = list(meshes(run_of(PlannedMesh(8)), node))
    assert [(mesh.replicate, mesh.shard) for mesh in found] == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert all(mesh.devices == 1000 for mesh in meshes(run_of(PlannedMesh(1000)), node))
    # As the plan of the family allows, and within a node: 8 processes are none.
    able = run_of(PlannedMesh(8), tensor_sizes=(1, 2, 4, 8))
    together = [(mesh.replicate, mesh.shard, mesh.tensor) for mesh in meshes(able, node) if mesh.tensor > 1]
    assert together == [(4, 1, 2), (2, 2, 2), (1, 4, 2), (2, 1, 4), (1, 2, 4)]
    other = replace(POLICY, role="value", vocabulary=0, tensor_sizes=(1, 2))
    both = replace(able, networks=(*able.networks, other))
    assert {mesh.tensor for mesh in meshes(both, node)} == {1, 2}
    assert {mesh.tensor for mesh in meshes(replace(both, networks=(POLICY, replace(other, whole=True))), node)} == {1}


def test_long_rows_may_lie_over_processes_that_their_heads_are_dealt_to():
    node = replace(CPU, devices=8)
    long = replace(ROWS, prompt=4000, response=1000)
    run = replace(run_of(PlannedMesh(8), heads=12), rows=long)
    assert {mesh.sequence for mesh in meshes(run, node)} == {1, 2, 4}
    assert {mesh.sequence for mesh in meshes(replace(run, rows=ROWS), node)} == {1}
    assert {mesh.shard for mesh in meshes(replace(run, undivided="load_in_4bit"), node)} == {1}


def test_stages_of_zero_are_proposed_where_deepspeed_is_asked_for():
    found = meshes(run_of(PlannedMesh(shard=4, zero_stage=3)), CPU)
    assert [(mesh.shard, mesh.zero_stage) for mesh in found] == [(4, 2), (4, 3)]


def test_what_fits_comes_first_and_keeps_the_batch():
    need = PlannedLayout(run_of(PlannedMesh(shard=4)), CPU).peak.bytes
    machine = replace(CPU, memory_bytes=need + 3000)
    found = proposals(run_of(PlannedMesh(4)), machine)
    assert {each.run.mesh.devices for each in found} == {4}
    assert all(each.run.rows.rows * each.run.mesh.row_groups == 16 for each in found)
    fits = [each.fits for each in found]
    assert fits == sorted(fits, reverse=True)
    assert fits[0]
    times_of = [each.seconds for each in found if each.fits]
    assert times_of == sorted(times_of)


def test_where_nothing_fits_the_nearest_comes_first_with_what_would_help():
    critic = replace(POLICY, role="value", vocabulary=0)
    run = replace(run_of(PlannedMesh(2)), networks=(POLICY, critic))
    found = proposals(run, replace(CPU, memory_bytes=20_000))
    assert not any(each.fits for each in found)
    assert found[0].free == max(each.free for each in found)
    help_of = remedies(found[0])
    assert all(each.saves > 0 for each in help_of)
    assert any("critic_trunk = shared" in each.change for each in help_of)
