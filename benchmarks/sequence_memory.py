"""How much memory the passes of one long row need on each process, by how many processes its tokens lie over.

    torchrun --nproc_per_node 2 -m benchmarks.sequence_memory 8192

prints the peak of each process's resident memory above what it had before the pass forward and backward. The row
belongs to rank 0; the others have a row of two tokens.
"""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import as_it_is, rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.sequence_groups import SequenceBackend
from nearstep.scale.torch_backend import torch_backend
from nearstep.types import Rollout

PAGE_MIB = 4096 / 2**20


def resident_mib() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MIB


class Peak:
    """The most that was resident while this ran, or another measure."""

    def __init__(self, measure: Callable[[], float] = resident_mib) -> None:
        self.measure = measure

    def __enter__(self) -> "Peak":
        self.before = self.most = self.measure()
        self.ended = False
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = True
        self.watcher.join()

    def _watch(self) -> None:
        while not self.ended:
            self.most = max(self.most, self.measure())
            time.sleep(0.002)


def row_of(tokens: int, prompt: int = 7) -> Rollout:
    """One prompt token, and actions. Rows with one prompt would share it, and attend under a mask for that."""
    return Rollout(
        tokens=torch.cat([torch.tensor([prompt]), torch.arange(tokens - 1) % 1000]),
        is_action=torch.arange(tokens) > 0,
        row_lengths=torch.tensor([tokens]),
        logprobs=torch.zeros(tokens - 1),
        finished=torch.tensor([True]),
        policy_version=torch.zeros(1, dtype=torch.long),
    )


def main(tokens: int) -> None:
    """The passes of a row of so many tokens, on as many processes as torchrun has started."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=65536, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    policy, backend, run = make_policy(AutoModelForCausalLM.from_config(config)), torch_backend(use_cpu=True), as_it_is
    if backend.world_size > 1:
        shared = SequenceBackend.over(backend, backend.world_size)
        run = shared.spread({"policy": RoleNetwork(policy.model, one_pass=True)})["policy"]
    for weight in policy.model.parameters():
        weight.grad = torch.zeros_like(weight)  # they are held either way
    with Peak() as peak:
        rollout = row_of(*((tokens,) if backend.rank == 0 else (2, backend.rank)))
        backend.backward(rollout_logprobs(replace(policy, run=run), rollout, Sampling()).sampled.sum())
    more = peak.most - peak.before
    print(f"rank {backend.rank} of {backend.world_size}, {tokens:,} tokens: {more:,.0f} MiB", flush=True)
    backend.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
