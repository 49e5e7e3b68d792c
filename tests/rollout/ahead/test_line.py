"""What crosses between trainer and generation process: messages and weights arrive as they were sent."""

import os
import socket

import pytest
import torch

from nearstep.common.errors import ModelError
from nearstep.rollout.ahead.link import split_threads
from nearstep.rollout.ahead.messages import Closed, FinishedRow, MessageLine, NewRows, NewWeights, RowsBegun, Worked
from nearstep.rollout.ahead.shared_weights import SharedWeights
from tests.tiny import tiny_causal_lm


def test_messages_arrive_as_they_were_sent():
    ours, theirs = (MessageLine(end) for end in socket.socketpair())
    chat = [{"role": "user", "content": "a\nβ"}]
    row = FinishedRow(
        7, True, torch.tensor([1, 2]), torch.tensor([False, True]), torch.tensor([-0.1]), torch.tensor([3])
    )
    sent = [NewWeights(3), NewRows([7], [[1]], [chat], {"x": [None]}), row, RowsBegun([7], 3), Worked(0.1, 0.2)]
    for message in sent:
        ours.send(message)
    found = [theirs.coming.get(timeout=10) for _ in sent]
    assert found[:2] + found[3:] == sent[:2] + sent[3:]
    for name, value in vars(row).items():
        same = torch.equal(vars(found[2])[name], value) if isinstance(value, torch.Tensor) else None
        assert same or vars(found[2])[name] == value
    large = FinishedRow(8, False, *[torch.arange(400_000)] * 4)  # more than a socket holds
    theirs.send(large)
    assert torch.equal(ours.coming.get(timeout=10).tokens, large.tokens)
    ours.close()
    assert theirs.coming.get(timeout=10) == Closed()
    with pytest.raises(OSError, match="Broken pipe"):
        theirs.send(NewWeights(4))
    theirs.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # the second has tied embeddings
def test_weights_are_copied_through_shared_memory(kind, dtype):
    ours, theirs = tiny_causal_lm(kind, dtype=dtype), tiny_causal_lm(kind, seed=3, dtype=dtype)
    shared = SharedWeights.for_model(ours)
    other = SharedWeights.of(os.dup(shared.descriptor), shared.layout)
    assert not shared.holds(ours)
    shared.write(ours)
    assert shared.holds(ours)
    other.read_into(theirs)
    for name, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight)
    next(ours.parameters()).data[0] += 1
    assert not shared.holds(ours)
    shared.close()
    other.close()


def test_another_model_is_named():
    shared = SharedWeights.for_model(tiny_causal_lm(layers=3))
    with pytest.raises(ModelError, match=r"model\.layers\.2\.\S+ is missing there, and has shape"):
        shared.read_into(tiny_causal_lm())
    shared.close()


def test_threads_are_shared_out():
    assert [split_threads(threads) for threads in (1, 2, 3, 8)] == [(1, 1), (1, 1), (2, 1), (4, 4)]
