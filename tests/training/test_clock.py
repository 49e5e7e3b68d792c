"""Where the seconds of an update go, by a clock that is moved by hand."""

import torch

from nearstep.training.clock import Clock


def test_shares_of_a_lap_by_hand():
    moments = iter([10.0, 11.0, 13.0, 14.0, 15.0, 20.0, 20.0, 21.0, 22.0])
    clock = Clock(torch.device("cpu"), lambda: next(moments))
    with clock("generate"):  # 11 to 13
        pass
    with clock("generate"):  # 14 to 15
        pass
    assert clock.lap() == (10.0, {"generate": 0.3, "other": 0.7})
    with clock("update"):  # 20 to 21
        pass
    seconds, shares = clock.lap()  # at 22, from 20 on
    assert (seconds, shares) == (2.0, {"update": 0.5, "other": 0.5})
