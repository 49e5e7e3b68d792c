"""What each of several processes does in test_sharded: the runs of two_processes, their networks in pieces."""

from pathlib import Path

import torch

from nearstep.models.roles import make_policy
from nearstep.rollout.vllm.weights import folder_weights, whole_model
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import torch_backend
from tests.scale import two_processes
from tests.tiny import tiny_causal_lm


def main(where: str, shard: str, saved_by_one: str) -> None:
    """All runs on pieces over `shard` processes, and one that goes on from what a single process has saved."""
    folder = Path(where)
    two_processes.LAYOUT |= {"dp_shard": int(shard)}
    two_processes.play_all(folder)
    two_processes.resume(folder, Path(saved_by_one))
    weights_for_another_program()
    two_processes.dist_close()


def weights_for_another_program() -> None:
    """While weights are gathered vLLM is given them whole, and they are whole afterwards too."""
    processes = torch_backend(use_cpu=True)
    model = tiny_causal_lm("gpt2")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backend, policy = ShardedBackend.over(processes, Degrees(1, processes.world_size)), make_policy(model)
    runners = backend.spread({"policy": RoleNetwork(model, one_pass=True)})
    assert runners.keys() == {"policy"}
    with backend.gathered(model):
        for _ in range(2):
            found = folder_weights(whole_model(policy, "vllm_server"))
            assert all(type(tensor) is torch.Tensor for tensor in found.values())
            assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
