"""The laws of backends: torch's keeps them on one process and on two, and broken ones are caught."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nearstep.common.errors import ConformanceError
from nearstep.scale import torch_backend as backend_room
from nearstep.scale.backend import WholeNetwork
from nearstep.scale.torch_backend import TorchBackend
from nearstep.testing import check_backend
from nearstep.testing.backends import LAWS

pytestmark = pytest.mark.slow  # dear, and the parts have tests of their own


def alone(cls=TorchBackend):
    return cls(rank=0, world_size=1, device=torch.device("cpu"))


def test_ours_keeps_every_law():
    assert [law for law, _ in check_backend(alone()).held] == [law.name for law in LAWS]


def test_ours_keeps_every_law_on_two_processes():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    target = f"{Path(backend_room.__file__)}:torch_backend"
    command = [*launcher, "-m", "nearstep", "check", target, "--kind", "backend"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"backend TorchBackend: {len(LAWS)} laws hold") == 2


class Forgetful(TorchBackend):
    def gather(self, item):
        return [{**item, "text": ""}] if isinstance(item, dict) else [item]


class KeepsFromMain(TorchBackend):
    def gather_to_main(self, item):
        return []


class MeanNotSum(TorchBackend):
    def add_up(self, values):
        return values / 2


class AddsInPlace(TorchBackend):
    def add_up(self, values):
        return values.add_(1).sub(1)


class FreshWeights(TorchBackend):
    def place(self, model):
        for weights in model.parameters():
            weights.data.normal_()
        return model


class SavesAPart(TorchBackend):
    def whole(self, model):
        part = copy.deepcopy(model)
        for weights in part.parameters():
            weights.data = weights.data[:1]
        return WholeNetwork(part, is_copy=True)


class TwiceTheGradient(TorchBackend):
    def backward(self, loss):
        (2 * loss).backward()


class ZerosForNobody(TorchBackend):
    def add_up_gradients(self, parameters):
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


class SumOfNorms(TorchBackend):
    def gradient_norm(self, parameters):
        return sum(parameter.grad.norm() for parameter in parameters if parameter.grad is not None)


class NeverThere(TorchBackend):
    def wait_for_all(self):
        raise TimeoutError("the others did not come")


BROKEN = {
    "protocol": lambda: object(),
    "ranks": lambda: TorchBackend(rank=1, world_size=1, device=torch.device("cpu")),
    "gather": Forgetful,
    "sums": MeanNotSum,
    "placed": FreshWeights,
    "saved": SavesAPart,
    "gradients": ZerosForNobody,
    "norm": SumOfNorms,
    "spread": TwiceTheGradient,
    "waits": NeverThere,
}


@pytest.mark.parametrize(("law", "make"), BROKEN.items(), ids=BROKEN)
def test_a_broken_one_is_caught_at_its_law(law, make):
    broken = alone(make) if isinstance(make, type) else make()
    with pytest.raises(ConformanceError, match=rf"breaks the law '{law}': .*\n  counterexample: \S"):
        check_backend(broken)


def test_a_sum_that_changes_its_input_is_caught():
    with pytest.raises(ConformanceError, match="add_up changed what it was given"):
        check_backend(alone(AddsInPlace))


def test_a_main_process_that_gets_nothing_is_caught():
    with pytest.raises(ConformanceError, match=r"breaks the law 'gather'(.|\n)*gather_to_main brought \[\] to rank 0"):
        check_backend(alone(KeepsFromMain))


def test_every_law_is_broken_by_one():
    assert list(BROKEN) == [law.name for law in LAWS]
