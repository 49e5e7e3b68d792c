"""Four roles on one base in two gloo processes: the weights of one process."""

import pytest
import torch

from tests import two_ranks
from tests.scale import one_base_processes
from tests.training.test_one_base import world


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    models = world(tmp_path / "models", one_base_processes.FAMILY)
    one_base_processes.main(models, tmp_path / "one")
    done = two_ranks.start("tests.scale.one_base_processes", models, tmp_path / "two")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / name / "weights.pt") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all((weight - two[name]).abs().max() <= 1e-10 for name, weight in one.items())
    assert (tmp_path / "two" / "value_adapter" / "adapter_model.safetensors").is_file()
