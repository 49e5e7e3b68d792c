"""What torchrun prints last of a run that failed: the cause, in the file where it looks for one."""

import json
import os
import time
from pathlib import Path

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup")
LATER_SECONDS = 60


def tell_launcher(message: str, error: BaseException | None = None) -> None:
    """Write why this process ends, if torchrun started it; of several processes the first one is shown.

    A process that only lost another is the consequence: it is written down as later, whichever was noticed first.
    """
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None:
        return
    is_consequence = isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PEER)
    moment = int(time.time()) + (LATER_SECONDS if is_consequence else 0)
    Path(place).write_text(json.dumps({"message": f"nearstep: {message}", "timestamp": moment}), encoding="utf-8")
