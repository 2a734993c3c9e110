"""The processes of a launcher, torchrun or accelerate launch, or one."""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from biflow.errors import InputError

T = TypeVar("T")

PATIENCE = 3600  # seconds that processes wait while the first one downloads, saves or measures for all
SETTLING = 0.2
"""Seconds to wait before destroying a process group. gloo's thread needs the GIL to release the tensors of the last
collective, and destroying the group waits for that thread while holding the GIL: a deadlock."""


@dataclass(frozen=True)
class World:
    """This process's rank, the number of processes, and the device."""

    rank: int
    size: int
    device: torch.device
    patient: Any = None  # the process group in which the others wait for `on_main`

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's share of a global batch, (n, ...) -> (n / size, ...)."""
        if len(items) % self.size:
            raise InputError(
                f"Expected a batch size divisible by {self.size} processes; got {len(items)}. "
                f"Set batch_size to a multiple of {self.size}."
            )
        return items.tensor_split(self.size)[self.rank]

    def any(self, flags: Tensor) -> Tensor:
        """Whether each flag (0 or 1) is set in any process: 0 or 1, from one all-reduce; collective."""
        return (mean_over_processes(flags) > 0).to(flags.dtype)

    def wait(self) -> None:
        """Barrier."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def check_same(self, value: object, what: str) -> None:
        """Raise in all processes unless all have the same value; collective."""
        values = self.gather(value)
        if odd := [str(rank) for rank, each in enumerate(values) if each != values[0]]:
            fault = InputError(
                f"Expected {what} to be the same in all {self.size} processes; process 0 differs from "
                f"{', '.join(odd)}. Give all machines the same files."
            )
            fault.alone = False
            raise fault

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Result of an action in the main process, None in the others, which wait; all raise its exception."""
        fault: list[Exception | None] = [None]
        result = None
        if self.is_main:
            try:
                result = action()
            except Exception as error:  # of any type: the others must not hang
                fault = [_portable(error)]
        if self.size > 1:
            dist.broadcast_object_list(fault, group=self.patient)
        if fault[0]:
            if isinstance(fault[0], InputError):
                fault[0].alone = False
            raise fault[0]
        return result


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes; collective."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def was_restarted() -> bool:
    """Whether torchrun or SLURM restarted this process after a failure or pre-emption."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


@contextmanager
def join_world(timeout: float | None = None) -> Iterator[World]:
    """Join the launcher's process group; a world of one process without a launcher.

    timeout: seconds that a process waits for another in a collective, but for `World.on_main`; by default torch's.
    """
    rank, size, local_rank = launched()
    device = own_device(local_rank)
    if size == 1:
        yield World(0, 1, device)
        return
    join_group("nccl" if device.type == "cuda" else "gloo", rank, size, timeout)
    try:
        yield World(rank, size, device, dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE)))
    except InputError as error:
        error.alone = error.alone is None
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        lost = InputError(
            f"Expected {size} processes that run until the end; process {rank} lost another one, or waited too long "
            "for it. See that one's error; if it was only slow, set a longer process_timeout. Then resume."
        )
        lost.alone = True
        raise lost from None
    finally:
        time.sleep(SETTLING)
        dist.destroy_process_group()


def launched() -> tuple[int, int, int]:
    """This process's rank, the number of processes, and the rank on this machine, as the launcher set them."""
    size = _environment_number("WORLD_SIZE", default=1)
    rank = _environment_number("RANK", default=0 if size < 2 else None)
    if rank >= max(size, 1) or size == 0:
        raise InputError(
            f"Expected RANK below WORLD_SIZE in the environment; got {rank} and {size}. Start with torchrun, or unset "
            "both."
        )
    return rank, size, _environment_number("LOCAL_RANK", default=0)


def own_device(local_rank: int) -> torch.device:
    """This process's GPU, or the CPU if there are none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= (count := torch.cuda.device_count()):
        raise InputError(
            f"Expected a GPU for each process of a machine; got process {local_rank + 1} and {count} GPUs. "
            "Start fewer processes."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def join_group(backend: str, rank: int, size: int, timeout: float | None) -> None:
    """Initialise the process group at the address that the launcher set."""
    try:
        dist.init_process_group(backend, timeout=None if timeout is None else timedelta(seconds=timeout))
    except (ValueError, RuntimeError) as error:  # a missing variable, a process that did not come
        why = str(error).strip().splitlines()[0].removesuffix(".")
        fault = InputError(f"Expected {size} processes to meet; process {rank} got: {why}. Start all with torchrun.")
        fault.alone = True
        raise fault from None


def _environment_number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"Expected a whole number in the environment variable {name}; got {text or None!r}. Start with torchrun, "
            "or unset WORLD_SIZE, RANK and LOCAL_RANK."
        )
    return int(text)


def _portable(error: Exception) -> Exception:
    """The error, or its text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any type: errors of libraries hold anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
