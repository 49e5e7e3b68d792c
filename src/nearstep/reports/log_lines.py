"""How lines that libraries log meanwhile come above a live screen instead of into it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def logs_above(before: tuple[Any, ...]) -> Iterator[None]:
    """While a screen is live, handlers of `logging` that write to the streams `before` write where these go now.

    A handler keeps the stream that it was made with, and so would write past what the screen has put in their place.
    """
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler in _stream_handlers():
        if any(handler.stream is stream for stream in before):
            now = sys.stderr if handler.stream is before[-1] else sys.stdout
            moved.append((handler, handler.setStream(now)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _stream_handlers() -> list["logging.StreamHandler[Any]"]:
    loggers = [
        logging.root,
        *(each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)),
    ]
    handlers = dict.fromkeys(handler for logger in loggers for handler in logger.handlers)
    return [each for each in handlers if isinstance(each, logging.StreamHandler)]
