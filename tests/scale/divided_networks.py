"""Networks of several families whose layers processes compute together: logits, gradients, norm and whole weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3MoeConfig

from nearstep.common.errors import TrainingError
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.shards import whole_tensor
from nearstep.scale.torch_backend import torch_backend
from tests.scale.tensor_varieties import SIZES, gemma3, made, phi3, qwen3, tied_llama, wide_llama
from tests.scale.two_processes import dist_close

MIXTURE = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def mixture():
    """Of experts, whose products know no float64."""
    return made(Qwen3MoeConfig(**MIXTURE), torch.float32)


def adapted():
    """LoRA on both kinds of divided layers, neither matrix zero."""
    torch.manual_seed(1)
    found = get_peft_model(wide_llama(), LoraConfig(target_modules=["q_proj", "down_proj"], r=2, lora_alpha=4))
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return found.double()


FAMILIES = {
    "llama": wide_llama, "tied": tied_llama, "qwen3": qwen3, "gemma3": gemma3, "phi3": phi3, "adapted": adapted,
    "mixture": mixture, "experts": mixture,
}  # fmt: skip


def main(tensor: str, shard: str, names: str = ",".join(FAMILIES)) -> None:
    """Each family over all processes, `tensor` of which compute together and `shard` groups of which hold pieces."""
    processes = torch_backend(use_cpu=True)
    for name in names.split(","):
        degrees = Degrees(
            processes.world_size // int(tensor) // int(shard), int(shard), int(tensor),
            int(tensor) if name == "experts" else 1,
        )  # fmt: skip
        compare(name, ShardedBackend.over(processes, degrees), int(tensor) * int(shard))
        print(name, "is right", flush=True)
    talk(ShardedBackend.over(processes, degrees))
    dist_close()


def passes(model: nn.Module, rank: int) -> list[torch.Tensor]:
    """Losses of two passes, on rows that each share of the batch has of its own; token 1 is padding's."""
    rows = torch.tensor([[3, 1, 200, 257, 130, 64, 1, 2], [9, 130, 5, 129, 1, 128, 250, 0]])
    return [(model(input_ids=row[None] // (rank + 1)).logits.double().square().mean()) for row in rows]


def compare(name: str, backend: ShardedBackend, holders: int) -> None:
    """One network as a single process has it, and divided over so many processes a copy."""
    plain, model = FAMILIES[name](), FAMILIES[name]()
    near = 1e-5  # norms compute in float32
    run = backend.spread({"policy": RoleNetwork(model, one_pass=True)})["policy"]
    with torch.no_grad():
        with backend.gathered(model):
            found = passes(model, backend.rank)
        expected = passes(plain, backend.rank)
    assert all(abs(a - b) <= near * (1 + abs(b)) for a, b in zip(found, expected, strict=True)), f"{name}: logits"
    for rank in range(backend.world_size):
        for loss in passes(plain, rank):
            loss.backward()
    for number in range(2):
        backend.backward(run(lambda number=number: passes(model, backend.rank)[number]))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    backend.add_up_gradients(weights)
    wanted = dict(plain.named_parameters())
    for weight_name, weight in model.named_parameters():
        if weight.requires_grad:
            gap = (whole_tensor(weight.grad) - wanted[weight_name].grad).abs().max()
            assert gap <= near * (1 + wanted[weight_name].grad.abs().max()), f"{name}: gradient of {weight_name}: {gap}"
    norm = nn.utils.get_total_norm([weight.grad for weight in plain.parameters() if weight.grad is not None])
    assert abs(backend.gradient_norm(weights) - norm) <= near * norm, f"{name}: norm"
    pieces = sum(weight.to_local().numel() for weight in model.parameters())
    every = sum(weight.numel() for weight in plain.parameters())
    assert pieces < 1.5 * every / holders, f"{name}: {pieces} of {every} weights here"
    whole = backend.whole(model)
    assert (whole is None) == (torch.distributed.get_rank() > 0)
    if whole is not None:
        kept = whole.model.state_dict()
        assert all(torch.equal(kept[each], weight) for each, weight in plain.state_dict().items()), f"{name}: whole"


def talk(backend: ShardedBackend) -> None:
    """What goes by shares of the rows, and what one process asks for all that have the same."""
    own = torch.distributed.get_rank()
    size = torch.distributed.get_world_size() // backend.world_size
    assert backend.gather(own) == [*range(0, torch.distributed.get_world_size(), size)]
    assert backend.everywhere(own) == [*range(torch.distributed.get_world_size())]
    assert backend.add_up(torch.tensor([1.0, float("inf") if own == 0 else 0.0])).tolist() == [
        backend.world_size, float("inf"),
    ]  # fmt: skip
    assert backend.once(lambda: own) == own // size * size
    with pytest.raises((IndexError, TrainingError), match="pop from empty list"):
        backend.once(lambda: [].pop())
