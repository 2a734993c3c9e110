"""Stopping a run between two steps instead of in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopAsked:
    """Whether Ctrl-C or SIGTERM came, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """True once one came."""
        return self.signal is not None

    @property
    def terminated(self) -> bool:
        """True if it was SIGTERM, which a scheduler sends before it takes the machine away."""
        return self.signal == signal.SIGTERM


@contextmanager
def stop_on_signal() -> Iterator[StopAsked]:
    """What tells whether Ctrl-C or SIGTERM came; a second one ends the program at once."""
    asked = StopAsked()

    def ask(signum: int, _frame: FrameType | None) -> None:
        asked.signal = signum
        signal.signal(signum, previous[signum])

    signals = (signal.SIGINT, signal.SIGTERM)
    previous: dict[int, Any] = {signum: signal.signal(signum, ask) for signum in signals}
    try:
        yield asked
    finally:
        for signum in signals:
            signal.signal(signum, previous[signum])
