"""What one save needs in the memory of each process: its own part of a checkpoint, or whole tensors on rank 0.

    torchrun --nproc_per_node 2 -m benchmarks.piece_saves [WIDTH]     # a minute or two of two cores

A policy in pieces (dp_shard) with Adam's moments, and no critic. Prints, for each form and process, the largest memory
during a save above what it was before, as a share of weights and moments too, and for how long training waited. What
files take in the system's cache is not counted.
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from tests.tiny import byte_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.sequence_memory import PAGE_MIB, Peak
from nearstep import PPOConfig
from nearstep.checkpoint.contents import CheckpointContent, CheckpointLabel, WholeContent
from nearstep.checkpoint.export import ModelFolders
from nearstep.checkpoint.piece_saves import PieceSaves
from nearstep.checkpoint.snapshot import take_snapshot
from nearstep.checkpoint.streamed_folders import StreamedFolders
from nearstep.models.roles import Models, make_policy
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.optimizers import Learners, make_learner
from nearstep.training.state import State

SHARD_BYTES = 20_000_000


def own_mib() -> float:
    """Memory of this process now, without pages of files."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * PAGE_MIB


def main(width: int) -> None:
    """Both forms, one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processes = torch_backend(use_cpu=True)
    backend = ShardedBackend.over(processes, Degrees(1, processes.world_size))
    config = LlamaConfig(
        vocab_size=8000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    models = Models(make_policy(model), None, None)
    backend.spread({"policy": RoleNetwork(model, one_pass=True)})
    learner = make_learner(model, PPOConfig(optim="adamw_torch"), 1e-3, updates=2)
    for weight in learner.parameters:
        weight.grad = torch.ones_like(weight)
    learner.step()
    learner.free_gradients()
    state, learners = State(update=1), Learners(learner, None)
    folders = ModelFolders(models, byte_tokenizer(), backend, lambda *given: "card", SHARD_BYTES)
    saves = PieceSaves(StreamedFolders(folders, backend), learners)
    mib = sum(12 * weight.numel() for weight in learner.parameters) / 2**20
    place = backend.gather(tempfile.mkdtemp())[0]
    if backend.is_main:
        print(f"weights and moments of the policy: {mib:.0f} MiB; model files of {SHARD_BYTES / 1e6:.0f} MB")
    for form in ("pieces", "whole", "pieces"):  # the first warms up what both use
        began = time.monotonic()
        with Peak(own_mib) as peak:
            snapshot = take_snapshot(learners, state, {})
            content: CheckpointContent | None
            if form == "pieces":
                content = saves.content(snapshot, state)
            else:
                writing, copied = folders.copied(state), snapshot.copied(main=backend.is_main)
                content = None if copied is None else WholeContent(writing, copied)
            held_up = time.monotonic() - began
            del snapshot
            if content is not None:
                content.write(Path(place) / f"checkpoint-{form}", CheckpointLabel(1, "fault", None, {}, {}))
            del content
        backend.wait_for_all()
        for rank, rise in enumerate(backend.everywhere(peak.most - peak.before)):
            if backend.is_main:
                print(f"{form}, rank {rank}: + {rise:.0f} MiB ({rise / mib:.2f}), training waits {held_up:.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
