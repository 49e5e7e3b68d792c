"""`--nproc N`: a command as several processes on this machine, as torchrun would start them."""

import os
import sys
from collections.abc import Mapping, Sequence

from nearstep.common.errors import ConfigError

FLAG = "--nproc"
MEANING = "start so many processes on this machine, as torchrun --nproc_per_node does; a batch is shared among them"


def take_processes(words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """How many processes are asked for, 1 without the flag, and the other words.

    Raises ConfigError for what is no number, and where a launcher has started processes already.
    """
    rest, asked = [], "1"
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == FLAG:
            asked = value if equals else next(remaining, "")
        else:
            rest.append(word)
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"{FLAG} = {asked!r} must be a number of processes, at least 1")
    started = environment.get("WORLD_SIZE", "1")
    if int(asked) > 1 and started != "1":
        raise ConfigError(
            f"{FLAG} {asked}: this is one of {started} processes that a launcher has started already. Leave one of the "
            "two out"
        )
    return int(asked), rest


def become_launcher(processes: int, command: str, words: Sequence[str]) -> None:
    """Go on as torchrun, which starts the command anew in each process; signals and exit code are torchrun's."""
    # Left to itself torchrun gives each process one thread.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable, [*launcher, "-m", "nearstep", command, *words], {**os.environ, "OMP_NUM_THREADS": threads}
    )
