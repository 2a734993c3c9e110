"""Stop training between two steps on Ctrl-C or SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Callable that returns True once Ctrl-C or SIGTERM was received."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    @property
    def terminated(self) -> bool:
        """Whether it was SIGTERM, which schedulers send before pre-emption."""
        return self.signal == signal.SIGTERM


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Catch the first Ctrl-C or SIGTERM; a second one ends the program at once."""
    request = StopRequest()

    def handle(signum: int, _frame: FrameType | None) -> None:
        request.signal = signum
        signal.signal(signum, previous[signum])

    signals = (signal.SIGINT, signal.SIGTERM)
    previous: dict[int, Any] = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield request
    finally:
        for signum in signals:
            signal.signal(signum, previous[signum])
