"""Two ranks of one program, or more, which `fork` after its imports: what torchrun starts, for a third of the processor
time.

`python -m tests.two_ranks RANKS MODULE ARGUMENT…` calls `MODULE.main(ARGUMENT…)` in each. Nothing may train before the
fork.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback


def start(module: str, *arguments: object, ranks: int = 2, timeout: float = 200) -> subprocess.CompletedProcess:
    """All ranks, and what they said."""
    command = [sys.executable, "-m", "tests.two_ranks", str(ranks), module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)


def main() -> int:
    """The exit code: 0 where all ranks end well. The first that fails ends the others, which may be waiting for it."""
    count, name, *arguments = sys.argv[1:]
    module = importlib.import_module(name)
    for needed in ("datasets", "transformers.models.gpt2.modeling_gpt2"):  # imported at their first use, in each rank
        importlib.import_module(needed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": count}
    ranks = {forked(module, arguments, rank, address) for rank in range(int(count))}
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def forked(module, arguments: list[str], rank: int, address: dict[str, str]) -> int:
    """The process id of a rank; the rank itself does not come back."""
    child = os.fork()
    if child:
        return child
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
    code = 1
    try:
        module.main(*arguments)
        code = 0
    except BaseException:  # noqa: BLE001 (a process ends here)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
