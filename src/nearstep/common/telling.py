"""What is said before a run has a screen of its own, what a launcher is told last, and how other libraries are kept
from talking into it."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearstep.common.errors import LostProcessError
from nearstep.common.secrets import without_secrets

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup")
LATER_SECONDS = 60


def tell(text: str) -> None:
    """Say one thing at once, in a line on standard error; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":  # set by launchers
        print(f"nearstep: {without_secrets(text)}", file=sys.stderr, flush=True)


def tell_launcher(message: str, error: BaseException | None = None) -> None:
    """Write why this process ends, if torchrun started it; of several processes the first one is shown.

    A process that only lost another is the consequence: it is written down as later, whichever was noticed first.
    """
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None:
        return
    is_consequence = isinstance(error, LostProcessError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PEER)
    )
    moment = int(time.time()) + (LATER_SECONDS if is_consequence else 0)
    Path(place).write_text(json.dumps({"message": f"nearstep: {message}", "timestamp": moment}), encoding="utf-8")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the bars of transformers and datasets; those of the hub's downloads, which may be long, stay."""
    import datasets
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    had_bars, had_map_bars = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    had_downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if had_downloads:
        enable_progress_bars()  # transformers switches them off with its own
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()
        if had_map_bars:
            datasets.enable_progress_bars()
