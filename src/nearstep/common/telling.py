"""What is said before a run has a screen of its own, and how other libraries are kept from talking into it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nearstep.common.secrets import without_secrets


def tell(text: str) -> None:
    """Say one thing at once, in a line on standard error; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":  # set by launchers
        print(f"nearstep: {without_secrets(text)}", file=sys.stderr, flush=True)


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
