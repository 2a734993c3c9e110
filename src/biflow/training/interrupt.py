"""Stopping a run between two steps instead of in the middle of one."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C (or SIGTERM) came; a second Ctrl-C ends the program at once."""
    asked = False

    def ask(signum: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signum, previous[signum])

    signals = (signal.SIGINT, signal.SIGTERM)
    previous: dict[int, Any] = {signum: signal.signal(signum, ask) for signum in signals}
    try:
        yield lambda: asked
    finally:
        for signum in signals:
            signal.signal(signum, previous[signum])
