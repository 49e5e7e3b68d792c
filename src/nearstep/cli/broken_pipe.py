"""What becomes of output that nobody reads on, such as that of `nearstep --help | head -1`."""

import os
import select
import sys


def silence_unread_streams() -> bool:
    """Whether standard output or error is a pipe whose reader has gone; what is left for it then goes nowhere.

    Python would print a traceback when it flushes such a stream at its end.
    """
    streams = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream is not None]
    unread = [number for number in streams if _is_unread(number)]
    for number in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(unread)


def _is_unread(number: int) -> bool:
    """A broken pipe may also be one to a worker or a server: those are no matter of the command line."""
    poll = select.poll()
    poll.register(number, 0)  # an error is told in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))
