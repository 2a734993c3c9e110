"""What a training step is given, and how it gets to the device before it is needed."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.losses.perceptual import WHOLE, Window

AHEAD = 2  # batches that are made while the device works on one


class Batch(NamedTuple):
    """One process's part of a training batch, with everything random already done to it."""

    clean: Tensor  # (B, P, H, W)
    noisy: Tensor  # (B, P, H, W)
    labels: Tensor  # (B,), some of them null
    guidance: Tensor  # (B,), strengths to train the reverse model with; 0 where the label is null
    images: Tensor | None = None  # (B, P, H, W) in [-1, 1], where an encoder sees other images than the flow
    window: Window = WHOLE  # the part of all images that the networks of distances see

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed."""
        changed: dict[str, Any] = {
            key: change(part) for key, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**changed)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts of one size."""
    if len(batch.labels) % parts:
        raise InputError(
            f"Expected a batch of each process that splits into {parts} parts; got {len(batch.labels)}. "
            "Set accumulate to a number that divides it."
        )
    pieces = [part.chunk(parts) if isinstance(part, Tensor) else [part] * parts for part in batch]
    return [Batch(*values) for values in zip(*pieces, strict=True)]


def on_device(make_batch: Callable[[int], Batch], steps: range, device: torch.device) -> Iterator[Batch]:
    """The batches of these steps on the device; those of the next steps are made and copied while a GPU works."""
    if device.type == "cuda":
        return _made_ahead(make_batch, steps, device)
    return (make_batch(step).map(lambda part: part.to(device)) for step in steps)


def _made_ahead(make_batch: Callable[[int], Batch], steps: range, device: torch.device) -> Iterator[Batch]:
    copying = torch.cuda.Stream(device)

    def prepare(step: int) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            batch = make_batch(step).map(lambda part: _pinned(part).to(device, non_blocking=True))
            return batch, copying.record_event()

    thread = ThreadPoolExecutor(1, "batches")
    try:
        coming: deque[Future[tuple[Batch, torch.cuda.Event]]] = deque()
        for step in steps:
            while len(coming) <= AHEAD and step + len(coming) in steps:
                coming.append(thread.submit(prepare, step + len(coming)))
            batch, copied = coming.popleft().result()
            working = torch.cuda.current_stream(device)
            working.wait_event(copied)
            for part in batch:
                if isinstance(part, Tensor):
                    part.record_stream(working)  # its memory is free again only after the step that reads it
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
