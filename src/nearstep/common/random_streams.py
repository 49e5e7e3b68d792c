"""Where every random number of a run comes from: named streams, derived from the seed and a position.

No stream has state that outlives its use, so the position of a run (its update number) is all that a resumed run needs,
and what a caller does to the global generators changes nothing.
"""

import hashlib

import torch


def stream_seed(seed: int, name: str, *position: int) -> int:
    """Seed of the stream `name` at `position`, e.g. `stream_seed(0, "sampling", update, row)`; 63 bits."""
    key = "/".join([str(seed), name, *map(str, position)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str, *position: int) -> torch.Generator:
    """A fresh CPU generator for the stream `name` at `position`."""
    return torch.Generator().manual_seed(stream_seed(seed, name, *position))
