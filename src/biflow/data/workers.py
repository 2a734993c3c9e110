"""Processes that read ahead, in order. Each has a pipe of its own: none needs shared memory, which containers lack.

A process that is killed closes its pipe, whatever it was sending, so nothing waits for it.
"""

import io
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from biflow.errors import InputError

R = TypeVar("R")

AHEAD = 2  # items per worker that are computed before they are needed
PRELOADED = "biflow.data.reader"  # imported once, for all workers


def map_in_workers(function: Callable[[Any], R], items: Iterable[Any], workers: int) -> Iterator[R]:
    """Results of a picklable function in the order of the items, computed ahead by this many processes."""
    payload = to_bytes(function)
    started: list[Worker[R]] = [Worker(payload) for _ in range(workers)]
    free: SimpleQueue[Worker[R]] = SimpleQueue()
    for worker in started:
        free.put(worker)

    def compute(item: Any) -> R:
        worker = free.get()
        try:
            return worker.compute(item)
        finally:
            free.put(worker)

    threads, pending = ThreadPoolExecutor(workers, "workers"), deque[Future[R]]()
    try:
        for item in items:
            pending.append(threads.submit(compute, item))
            if len(pending) >= AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in started:
            worker.process.kill()
        threads.shutdown(cancel_futures=True)
        for worker in started:
            worker.close()


class Worker(Generic[R]):
    """A process that computes one item at a time."""

    def __init__(self, payload: bytes) -> None:
        # forking a process with threads can deadlock; Windows has no other way than spawn
        context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        context.set_forkserver_preload([PRELOADED])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, payload), daemon=True)
        self.process.start()
        theirs.close()
        Finalize(self, self.process.kill, exitpriority=0)  # it ignores what `multiprocessing` sends at the end

    def compute(self, item: Any) -> R:
        """The result for an item; raises if the process has ended."""
        try:
            self.connection.send_bytes(to_bytes(item))
            result, fault = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self.process.join(timeout=5)
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise InputError(
                f"Expected reading workers to run until training ends; one {how}, often for lack of memory. "
                "Lower reading.workers, and resume with --resume."
            ) from None
        if fault:
            raise RuntimeError(f"In a reading worker:\n{fault}")
        return result

    def close(self) -> None:
        """Release the process and its pipe."""
        self.process.join()
        self.connection.close()


def serve(connection: Connection, payload: bytes) -> None:
    """Main function of a worker: answer items until the other end of the pipe is closed.

    Ctrl-C and SIGTERM, which may go to all processes, only stop training, which still reads to the end of its step.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    torch.set_num_threads(1)
    function = pickle.loads(payload)
    while True:
        try:
            item = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = to_bytes((function(pickle.loads(item)), ""))
        except Exception:  # of any type: it is raised in the training process
            answer = to_bytes((None, traceback.format_exc()))
        try:
            connection.send_bytes(answer)
        except OSError:
            os._exit(0)


def to_bytes(value: Any) -> bytes:
    """Pickle a value, with tensors as NumPy arrays: torch's own way to send them takes shared memory."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented
