"""Gradients are summed in buckets: the same sums, and little memory beside the gradients."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nearstep.scale import torch_backend
from nearstep.scale.torch_backend import TorchBackend, buckets
from tests.memory import peak_bytes


def test_buckets_by_hand():
    small, large, other = torch.zeros(2), torch.zeros(9), torch.zeros(2, dtype=torch.float64)
    found = buckets([small, small, other, small, large, small], 16)
    sizes = [[(tensor.dtype, len(tensor)) for tensor in bucket] for bucket in found]
    single, double = torch.float32, torch.float64
    assert sizes == [[(single, 2)] * 2, [(single, 2)], [(single, 9)], [(single, 2)], [(double, 2)]]
    assert buckets([], 16) == []


@pytest.fixture
def twins(monkeypatch):
    """Two processes that hold the same."""
    monkeypatch.setattr(torch_backend, "BUCKET_BYTES", 3 * 4000)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op=None: tensor.mul_(2))
    return TorchBackend(rank=0, world_size=2, device=torch.device("cpu"))


def parameters_of(*shapes):
    parameters = [nn.Parameter(torch.empty(shape)) for shape in shapes]
    for number, parameter in enumerate(parameters, start=1):
        parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter) * number
    return parameters


def test_sums_in_buckets_are_the_sums(twins):
    parameters = parameters_of((1000,), (40, 100), (7,), (10, 10), (900,))
    parameters[3].grad = parameters[3].grad.T  # not as it lies in memory
    expected = [2 * parameter.grad for parameter in parameters]
    twins.add_up_gradients(parameters)
    assert all(torch.equal(parameter.grad, sum_) for parameter, sum_ in zip(parameters, expected, strict=True))


def test_no_more_than_a_bucket_is_copied(twins):
    parameters = parameters_of(*[(1000,)] * 20, (50_000,))
    assert peak_bytes(lambda: twins.add_up_gradients(parameters)) < 3 * 4000 + 1000
