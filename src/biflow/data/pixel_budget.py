"""How many pixels are decoded at once, by all threads of a process together."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BYTES_PER_PIXEL = 8  # while an image is decoded: itself and its converted copy
SHARE = 8  # a part of the memory in so many
DEFAULT_MEMORY = 8 * 2**30  # where the system does not tell


class PixelBudget:
    """Lets threads decode images while these have at most so many pixels together, or one larger image alone."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self._changed = most, 0, threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image of this many pixels, and keep it until the context exits."""
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + pixels <= self.most)
            self.taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self.taken -= pixels
                self._changed.notify_all()


def memory() -> int:
    """Bytes of memory that this process may use: the machine's or, in a container, its own."""
    found = DEFAULT_MEMORY
    with suppress(AttributeError, OSError, ValueError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # the file says "max" where there is no limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return found


PIXELS = PixelBudget(memory() // SHARE // BYTES_PER_PIXEL)
