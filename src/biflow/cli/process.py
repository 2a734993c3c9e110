"""How this process treats freed memory, the processors that it shares with others, its errors and its output."""

import ctypes
import io
import os
import sys
import time

from biflow.console import say
from biflow.errors import InputError

SPINS = "100"
PATIENCE = 2  # seconds, in which a launcher ends all processes after the first has ended


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


def share_processors() -> None:
    """Have threads that wait for each other give way soon, unless the user has set how they wait.

    Call it before torch is loaded.  GNU OpenMP spins for milliseconds at the end of every parallel loop; if another
    process has the processor meanwhile, training becomes several times slower (docs/results/speed).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def say_error(error: InputError) -> None:
    """Print an error: of all processes once, of one process with its rank."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        say(f"Error: {error}")
    elif error.alone is not False:
        if error.alone is None:  # raised before the processes met: the first may have met it as well
            time.sleep(PATIENCE)
        say(f"Error in process {rank}: {error}")


def escape_unencodable() -> None:
    """Have characters that are not in the encoding of the output printed as escapes; by default they are an error."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")
