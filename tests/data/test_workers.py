"""Processes that read ahead."""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch

from biflow.data.workers import map_in_workers
from biflow.errors import InputError


def times(table, item):
    return table[item].sum(), table.is_shared(), [item, -item]


def wait_and_name(_):
    time.sleep(0.3)
    return os.getpid()


def divide(item):
    return 1 / item


def test_results_come_in_order_and_nothing_goes_through_shared_memory():
    """A container has 64 MB of it; two batches of 256x256 images fill that."""
    table = torch.arange(40.0).view(20, 2)
    found = list(map_in_workers(partial(times, table), range(20), 2))
    assert [total.item() for total, _, _ in found] == [4.0 * item + 1 for item in range(20)]
    assert [rest for _, _, rest in found] == [[item, -item] for item in range(20)]
    assert not any(shared or total.is_shared() for total, shared, _ in found)
    assert not table.is_shared()


def test_a_killed_worker_is_one_sentence():
    results = map_in_workers(wait_and_name, range(100), 2)
    os.kill(next(results), signal.SIGKILL)
    with pytest.raises(InputError, match=r"one was killed by SIGKILL, .* Lower reading\.workers"):
        list(results)


def test_workers_end_with_the_iterator_and_outlive_the_signals_that_stop_training():
    results = map_in_workers(wait_and_name, range(100), 2)
    worker = next(results)
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, signum)
    assert worker in {next(results) for _ in range(3)}
    results.close()
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("workers")]


def test_a_fault_of_the_function_shows_where_it_was_raised():
    results = map_in_workers(divide, [2, 0, 4], 1)
    assert next(results) == 0.5
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        next(results)
