"""Partners of a pass as threads of one process: the exchanges of sequence parallelism without process groups."""

from dataclasses import dataclass, field
from threading import Barrier, Thread

import torch


@dataclass
class Meeting:
    """Where threads bring something, and take what the others brought."""

    size: int
    barrier: Barrier = field(init=False)
    brought: list = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.brought = Barrier(self.size), [None] * self.size

    def meet(self, place, item):
        """What each brought."""
        self.brought[place] = item
        self.barrier.wait(60)
        found = list(self.brought)
        self.barrier.wait(60)
        return found


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, sent, received, partner):
        ctx.way_back = received, sent, partner
        return partner.send(values, sent, received)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.way_back[2].send(gradient, *ctx.way_back[:2]), None, None, None


@dataclass(frozen=True)
class ThreadPartner:
    """One of the threads."""

    place: int
    meeting: Meeting

    @property
    def size(self):
        return self.meeting.size

    @property
    def partners(self):
        return self

    def __call__(self, one_pass):
        return one_pass()

    def gather(self, item):
        return self.meeting.meet(self.place, item)

    def exchange(self, values, sent, received):
        return _Exchange.apply(values, list(sent), list(received), self)

    def send(self, values, sent, received):
        assert sum(sent) == len(values)
        parts = self.meeting.meet(self.place, values.detach().clone().split(list(sent)))
        mine = [each[self.place] for each in parts]
        assert [len(part) for part in mine] == list(received)
        return torch.cat(mine)


def together(size, work):
    """What `work(partner)` gives in each of `size` threads. Raises what any of them raised."""
    meeting, found, errors = Meeting(size), [None] * size, []

    def run(place):
        try:
            found[place] = work(ThreadPartner(place, meeting))
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)
            meeting.barrier.abort()

    threads = [Thread(target=run, args=(place,)) for place in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
