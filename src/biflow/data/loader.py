"""The images of each training step, for every kind of data set."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from biflow.config import FitConfig, ReadingConfig
from biflow.data.datasets import ImageSet, ImageSource, ImageStream, Source, indices_at
from biflow.data.latents import LatentSet
from biflow.data.randomness import Key, permutation
from biflow.data.reader import SMALL, Examples, image_reader, size_in_memory
from biflow.data.stream import ShuffledStream, stream_reader
from biflow.distributed import World

BATCH = 256


def make_reader(
    data: Source, fit: FitConfig, reading: ReadingConfig, *keys: Key, world: World
) -> Callable[[int], Examples]:
    """A function step -> this process's images, which depend only on (keys, step), or of a stream also on the world."""
    if isinstance(data, ImageStream):
        batch_size = len(world.share(torch.arange(fit.batch_size)))
        stream = ShuffledStream(data, *keys, rank=world.rank, size=world.size, block_size=reading.shuffle_buffer)
        return stream_reader(stream, batch_size=batch_size, steps=fit.steps, workers=reading.workers)
    indices = partial(indices_of_step, keys=keys, batch_size=fit.batch_size, num_images=len(data), world=world)
    return image_reader(data, indices, steps=fit.steps, workers=reading.workers, keep=is_kept(data, reading))


def is_kept(data: ImageSource, reading: ReadingConfig) -> bool:
    """Whether decoded images are cached in memory."""
    if isinstance(data, ImageSet | LatentSet) or reading.cache == "none":
        return False  # those two need no decoding
    return reading.cache == "memory" or (not reading.workers and size_in_memory(data) <= SMALL)


def indices_of_step(step: int, *, keys: tuple[Key, ...], batch_size: int, num_images: int, world: World) -> Tensor:
    """Indices of this process's images of a step; at module level, so that workers can pickle it."""
    return world.share(indices_at(step, *keys, batch_size=batch_size, num_images=num_images))


def some_examples(data: Source, limit: int, *keys: Key) -> Iterator[Examples]:
    """Up to `limit` random images, or the first of a shuffled stream; the same in every process."""
    if isinstance(data, ImageStream):
        stream = ShuffledStream(data, *keys, rank=0, size=1, block_size=BATCH)
        steps = limit // BATCH
        yield from map(stream_reader(stream, batch_size=BATCH, steps=steps, workers=0), range(steps))
        return
    for indices in permutation(len(data), *keys)[:limit].split(BATCH):
        yield Examples(data.read(indices), data.labels[indices], indices.tolist())
