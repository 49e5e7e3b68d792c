"""What a captured step may not do, and what is said where a model or a machine does not allow graphs."""

from contextlib import nullcontext

import pytest
import torch

from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.attention import varlen as attention_gpu
from nearstep.models.attention.varlen import Kernel
from nearstep.models.roles import make_policy
from nearstep.rollout import decode_graphs, slot_cache
from nearstep.rollout.decode_graphs import GraphedDecoding, cuda_graph_capture
from tests.lanes import sampled, slow
from tests.models.test_roles_and_loading import family
from tests.rollout.graphed import FAMILIES, decodings, model_of, play
from tests.rollout.tape import HostTouchedError, Tape, recorded
from tests.tiny import tiny_causal_lm

slot_cache_attend = slot_cache.attend_where


class Moved:
    """A step that has left the CPU: no tensor of it has numbers, so nothing of them can be read."""

    def __init__(self, policy, monkeypatch):
        _, batch = decodings(policy, Tape().capture)
        policy.model.to("meta")
        for stored in (batch.cache.keys, batch.cache.values):
            stored[:] = [states.to("meta") for states in stored]
        monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # it does not know the device
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)  # nor can the run before read
        self.decoding = GraphedDecoding.of(policy, batch.cache, self.capture)
        self.operations = []

    def capture(self, work):
        self.operations.append(recorded(work))
        return lambda: None


@torch.no_grad()
@pytest.mark.parametrize("checkpointing", [False, slow(True)])
@pytest.mark.parametrize(("kind", "changes"), sampled(FAMILIES, 4))
def test_nothing_of_a_step_is_read_or_made_by_the_host(kind, changes, checkpointing, monkeypatch):
    moved = Moved(make_policy(model_of(kind, changes), checkpointing=checkpointing), monkeypatch)
    monkeypatch.setattr(torch, "get_rng_state", None)  # of a GPU's generator it cannot be asked during a capture
    logits = moved.decoding.logits(torch.zeros(3, dtype=torch.long, device="meta"), [3, 1, 4])
    assert logits.shape == (3, moved.decoding.output.shape[1])
    assert len(moved.operations[0]) > 50


def reading(query, key, value, visible, layer):
    return slot_cache_attend(query, key, value, visible, layer) * float(visible.sum())


def listing(query, key, value, visible, layer):
    return slot_cache_attend(query, key, value, visible, layer) * torch.tensor([1.0], device=query.device)


@torch.no_grad()
@pytest.mark.parametrize("slip", [reading, listing])
def test_a_step_that_reads_or_makes_something_is_caught(slip, monkeypatch):
    moved = Moved(make_policy(tiny_causal_lm()), monkeypatch)
    monkeypatch.setattr(slot_cache, "attend_where", slip)
    with pytest.raises((ModelError, RuntimeError), match=r"could not be captured|cannot be called on meta tensors"):
        moved.decoding.logits(torch.zeros(3, dtype=torch.long, device="meta"), [3, 1, 4])


def test_a_model_that_cannot_be_captured_is_refused_in_words():
    """These frequencies are computed anew, on the host, when a row has grown."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    policy = make_policy(family("llama", rope_parameters=dynamic))
    with pytest.raises(ModelError, match=r"could not be captured as a CUDA graph .* Leave decode_graphs out") as told:
        play(policy, Tape().capture)
    assert isinstance(told.value.__cause__, HostTouchedError)


def test_lack_of_memory_is_told_as_what_it_is():
    def capture(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        play(make_policy(tiny_causal_lm()), capture)


def test_without_a_gpu_it_says_so():
    with pytest.raises(ConfigError, match=r"decode_graphs = true replays CUDA graphs, and the policy is on the cpu"):
        cuda_graph_capture(torch.device("cpu"))


def test_a_cuda_graph_is_captured_in_memory_that_all_share(monkeypatch):
    """The calls, for there may be no GPU here; the next test needs one."""
    told = []

    class Graph:
        def replay(self):
            told.append("replay")

    class Capturing(nullcontext):
        def __init__(self, graph, pool):
            super().__init__()
            told.append(f"capture in {pool}")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    replay = cuda_graph_capture(torch.device("cuda"))(lambda: told.append("work"))
    replay()
    assert told == ["capture in pool", "work", "replay"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("kind", "changes"), FAMILIES)
@torch.no_grad()
def test_cuda_graphs_give_what_plain_steps_give(kind, changes, autocast, checkpointing, monkeypatch):
    monkeypatch.setattr(decode_graphs, "WIDTH_STEP", 6)
    monkeypatch.setattr(attention_gpu, "kernels_there", lambda: frozenset({Kernel.ROWS}))  # prefill is not the matter
    device = torch.device("cuda")
    policy = make_policy(model_of(kind, changes).to(device), autocast=autocast, checkpointing=checkpointing)
    batches = decodings(policy, cuda_graph_capture(device))
    tolerance = 0.1 if autocast else 1e-3
    for number in range(20):
        tokens = torch.tensor([20, 21, 22][: len(batches[0].rows)], device=device) + number
        expected, found = (batch.step(tokens).float().clone() for batch in batches)
        torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)
        if number == 9:
            for batch in batches:
                batch.leave({0})
