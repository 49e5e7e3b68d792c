"""Batch arithmetic: which numbers come out, that totals are whole batches and said so, what is impossible."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.training.batches import batch_sizes
from nearstep.training.schedules import Decoupled, Joint, PolicyOnly, WarmUp, planned_steps


def sizes(rows=100, processes=1, **settings):
    return batch_sizes(PPOConfig(**settings), rows, processes)


def test_rows_times_accumulation_times_processes_is_a_batch():
    found = sizes(
        processes=2, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=2, total_episodes=48
    )
    assert (found.batch, found.updates, found.minibatches) == (24, 2, 2)


def test_batch_size_may_be_said_outright():
    found = sizes(batch_size=20, per_device_train_batch_size=3, num_generations=4, total_episodes=20)
    assert (found.batch, found.prompts, found.micro_rows) == (20, 5, 3)


def test_generations_round_a_batch_up():
    assert sizes(per_device_train_batch_size=8, num_generations=3, total_episodes=9).batch == 9


def test_epochs_over_the_data_set_the_total():
    assert sizes(rows=100, num_train_epochs=0.5, per_device_train_batch_size=10).updates == 5
    assert sizes(rows=100, num_train_epochs=1, num_generations=2, per_device_train_batch_size=10).updates == 20


@given(st.integers(1, 5000), st.integers(1, 64))
def test_totals_are_the_fewest_whole_batches_and_the_surplus_is_said_d25(total, rows):
    found = sizes(total_episodes=total, per_device_train_batch_size=rows)
    assert 0 <= found.episodes - total < rows
    table = {name: how for name, _, how in found.table()}
    surplus = found.episodes - total
    assert (f"{surplus} more than asked for" in table["updates"]) == (surplus > 0)


def with_steps(schedule, **settings):
    found = sizes(**settings)
    return replace(found, planned=planned_steps(schedule, found.updates, found.minibatches)).table()


def test_the_table_says_how_uneven_minibatches_are():
    table = with_steps(PolicyOnly(4), batch_size=10, num_mini_batches=4, total_episodes=10)
    assert table[2] == ("optimizer steps", "16", "of the policy, on 2 or 3 rows each")


def test_the_table_has_at_most_four_numbers_and_counts_what_will_happen():
    """8 updates of 20 rows, 2 epochs × 5 minibatches; the critic is alone in the first 3, 4 epochs each."""
    settings = {"batch_size": 20, "num_mini_batches": 5, "total_episodes": 160, "rows": 40}
    for schedule, steps in [
        (Joint(2), ("80", "of the policy, on 4 rows each; the critic takes 80")),
        (
            WarmUp(Joint(2), 3, 4),
            ("50", "of the policy, on 4 rows each; the critic takes 110, alone in the first 3 updates"),
        ),
        (
            WarmUp(Joint(2), 3, 4, until=0.5),
            ("≥ 50", "of the policy, on 4 rows each; the critic takes 110, alone in the first 3 updates at most"),
        ),
        (Decoupled(2, 1, 3, 8), ("80", "of the policy, on 4 rows each; the critic takes 15")),
    ]:
        table = with_steps(schedule, **settings)
        assert [name for name, *_ in table] == ["episodes per update", "updates", "optimizer steps", "rows at a time"]
        assert table[2][1:] == steps
    assert with_steps(Joint(1), processes=2, **settings)[0][2] == "20 prompts × 1 responses, over 2 processes"


def test_impossible_batches_are_refused():
    with pytest.raises(ConfigError, match="num_mini_batches = 9 is more than the 8 episodes"):
        sizes(per_device_train_batch_size=8, num_mini_batches=9)
    with pytest.raises(ConfigError, match="batch_size = 1 leaves processes without work"):
        sizes(processes=2, batch_size=1)


def test_passes_over_the_prompts_and_shares_of_a_stream():
    found = sizes(rows=40, batch_size=20, num_generations=2, total_episodes=80)  # 10 prompts an update, 4 updates
    assert (found.passes(1), found.passes(4)) == (0.25, 1.0)
    streamed = sizes(rows=None, batch_size=20, num_generations=2, total_episodes=80)
    assert (streamed.passes(1), streamed.passes(4)) == (0.25, 1.0)
    longer = sizes(rows=40, batch_size=20, total_episodes=80)
    assert longer.passes(4) == 2.0
    table = {name: (number, how) for name, number, how in longer.table()}
    assert table["updates"] == ("4", "80 episodes; 2.00 passes over 40 prompts")
    table = {name: (number, how) for name, number, how in streamed.table()}
    assert table["updates"] == ("4", "80 episodes; 40 prompts of a stream")
