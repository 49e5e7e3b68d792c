"""What the stand-in for a CUDA graph repeats, and what it refuses as a CUDA graph would."""

import pytest
import torch

from tests.rollout.tape import HostTouchedError, Tape, recorded

NUMBERS = torch.arange(4.0)
META = torch.empty(4, 4, device="meta")


def test_a_recording_repeats_operations_on_the_same_memory_and_no_python():
    given, kept, factor = torch.ones(3), torch.zeros(3), [2]

    def work():
        shifted = (given * factor[0]).view(3, 1) + 1
        kept.copy_(shifted[:, 0])

    replay = Tape().capture(work)
    assert kept.tolist() == [3.0] * 3
    given[1], factor[0] = 5, 100
    replay()
    assert kept.tolist() == [3.0, 11.0, 3.0]


@pytest.mark.parametrize("work", [
    lambda: NUMBERS.sum().item(),
    lambda: bool((NUMBERS > 1).all()),
    lambda: NUMBERS.nonzero(),
    lambda: NUMBERS[NUMBERS > 1],
    lambda: torch.equal(NUMBERS, NUMBERS),
    lambda: torch.tensor([1, 2]),
    lambda: NUMBERS[[0, 1]],
    lambda: torch.tensor(1.0, device="meta"),
    lambda: META.new_tensor([1.0]),
    lambda: META[:, [0]],
    lambda: META.index_fill_(0, META.new_tensor([0], dtype=torch.long), 1.0),
    lambda: META.copy_(NUMBERS),
    lambda: NUMBERS.to("meta"),
])  # fmt: skip
def test_what_touches_the_host_is_refused(work):
    with pytest.raises(HostTouchedError):
        recorded(work)


def test_what_does_not_is_taken():
    places = torch.tensor([0, 3])
    assert recorded(lambda: NUMBERS[places].add_(torch.arange(2)).mul(torch.tensor(0.5)))
    assert recorded(lambda: META * torch.tensor(0.5))
