"""How this process treats freed memory."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory instead of handing it back to the system after every large tensor.

    Without this a CPU spends much of a pass over a large batch on having the same pages mapped again.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**31 - 1)
