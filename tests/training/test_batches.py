"""Batch arithmetic: which numbers come out, that totals are whole batches and said so, what is impossible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.training.batches import batch_sizes


def sizes(rows=100, processes=1, **settings):
    return batch_sizes(PPOConfig(**settings), rows, processes)


def test_rows_times_accumulation_times_processes_is_a_batch():
    found = sizes(
        processes=2, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=2, total_episodes=48
    )
    assert (found.batch, found.updates, found.steps_per_update) == (24, 2, 8)


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
    assert (f"{surplus} more than asked for" in table["episodes in all"]) == (surplus > 0)


def test_the_table_says_how_uneven_minibatches_are():
    values = {name: value for name, value, _ in sizes(batch_size=10, num_mini_batches=4, total_episodes=10).table()}
    assert values["rows per minibatch"] == "2 or 3"
    assert values["optimizer steps per update"] == "16"


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
    assert table["episodes in all"] == ("80", "2.00 passes over 40 prompts")
    table = {name: (number, how) for name, number, how in streamed.table()}
    assert table["episodes in all"] == ("80", "40 prompts of a stream")
