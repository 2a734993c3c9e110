"""Training batches, prefetched to the device."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.losses.perceptual import WHOLE, Window

PREFETCH = 2  # batches prepared while the GPU works on one


class Batch(NamedTuple):
    """One process's share of a training batch, with all random draws (noise, dropped labels, guidance) applied."""

    clean: Tensor  # (B, P, H, W)
    noisy: Tensor  # (B, P, H, W)
    labels: Tensor  # (B,), some replaced by the null label
    guidance: Tensor  # (B,), guidance strengths for the reverse model; 0 for null labels
    images: Tensor | None = None  # (B, P, H, W) in [-1, 1], if the encoder sees images and the flow latents
    window: Window = WHOLE  # crop that the distance networks see, the same for all images
    prior: Tensor | None = None  # (B, T, D), standard normal noise to sample from
    prior_labels: Tensor | None = None  # (B,), labels of these samples, none of them replaced

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to every tensor."""
        parts: Any = (change(part) if isinstance(part, Tensor) else part for part in self)
        return Batch(*parts)


def check_splits(batch_size: int, parts: int) -> None:
    """Raise unless a process's batch of this size splits evenly into `parts` for gradient accumulation."""
    if batch_size % parts:
        raise InputError(
            f"Expected the batch of each process to be divisible by accumulate={parts}; got {batch_size} images. "
            "Set batch_size or accumulate."
        )


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into `parts` of equal size."""
    check_splits(len(batch.labels), parts)
    pieces = [part.chunk(parts) if isinstance(part, Tensor) else [part] * parts for part in batch]
    return [Batch(*values) for values in zip(*pieces, strict=True)]


def on_device(make_batch: Callable[[int], Batch], steps: range, device: torch.device) -> Iterator[Batch]:
    """The batches of these steps on the device; for a GPU, the next ones are prepared and copied in the background."""
    if device.type != "cuda":
        yield from (make_batch(step).map(lambda part: part.to(device)) for step in steps)
        return
    copying = torch.cuda.Stream(device)

    def prepare(step: int) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            pinned = make_batch(step).map(lambda part: part if part.is_cuda else part.pin_memory())
            return pinned.map(lambda part: part.to(device, non_blocking=True)), copying.record_event()

    thread = ThreadPoolExecutor(1, "batches")
    try:
        pending: deque[Future[tuple[Batch, torch.cuda.Event]]] = deque()
        for step in steps:
            while len(pending) <= PREFETCH and step + len(pending) in steps:
                pending.append(thread.submit(prepare, step + len(pending)))
            batch, copied = pending.popleft().result()
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copied)
            for part in batch:
                if isinstance(part, Tensor):
                    part.record_stream(computing)  # keeps the allocator from reusing it before the step is done
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)
