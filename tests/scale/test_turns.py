"""Whose rows go into which pass where processes make passes together: none has more tokens than there is room for."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from nearstep import PPOConfig
from nearstep.common.errors import ConfigError
from nearstep.scale.choice import make_backend
from nearstep.scale.sequence_groups import SequenceBackend
from nearstep.scale.torch_backend import TorchBackend
from nearstep.scale.turns import rounds_of
from nearstep.testing import check_backend
from nearstep.testing.backends import LAWS

MICRO_BATCHES = st.lists(st.lists(st.integers(1, 40), max_size=5), min_size=1, max_size=4)


def test_micro_batches_that_fit_go_together():
    assert rounds_of([[10, 10], [5]], limit=20) == [(True, True), (True, False)]
    # A row longer than the limit is alone; the others make room for it.
    assert rounds_of([[30], [5, 5]], limit=20) == [(True, False), (False, True), (False, True)]
    assert rounds_of([[], [7]], limit=20) == [(False, True)]
    assert rounds_of([[], []], limit=20) == []


@given(MICRO_BATCHES, st.integers(1, 60))
def test_every_micro_batch_has_its_turn_in_order_and_none_has_too_little_room(tokens, limit):
    rounds = rounds_of(tokens, limit)
    for number, own in enumerate(tokens):
        assert sum(taken[number] for taken in rounds) == len(own)
    left = [list(each) for each in tokens]
    for taken in rounds:
        together = [own.pop(0) for own, mine in zip(left, taken, strict=True) if mine]
        assert together
        assert len(together) == 1 or sum(together) <= limit


def test_a_number_that_does_not_divide_the_processes_is_refused():
    with pytest.raises(ConfigError, match="sp_size = 2 with 1 process: sp_size must divide the number of processes"):
        make_backend(PPOConfig(sp_size=2, use_cpu=True))


def test_the_backend_keeps_the_laws():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        backend = SequenceBackend.over(TorchBackend(0, 1, torch.device("cpu")), 1)
        assert [law for law, _ in check_backend(backend).held] == [law.name for law in LAWS]
        assert backend.turns([30, 5, 5], 10) == [True, True, True]
        found = backend.partners.exchange(torch.ones(3, 2, requires_grad=True), [3], [3])
        assert found.requires_grad
    finally:
        dist.destroy_process_group()
