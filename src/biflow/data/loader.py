"""Which images training reads, from whatever kind of data set."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from biflow.config import FitConfig, ReadingConfig
from biflow.data.datasets import ImageSet, ImageSource, ImageStream, Source, indices_at
from biflow.data.latents import LatentSet
from biflow.data.randomness import Key, permutation
from biflow.data.reader import SMALL, Examples, Reader, size_in_memory
from biflow.data.stream import Part, ShuffledStream, StreamReader
from biflow.distributed import World

BATCH = 256


def make_reader(
    data: Source, fit: FitConfig, reading: ReadingConfig, *keys: Key, world: World
) -> Callable[[int], Examples]:
    """A function step -> this process's images; they depend on (keys, step), a stream's on the processes too."""
    if isinstance(data, ImageStream):
        batch_size = len(world.share(torch.arange(fit.batch_size)))
        part = Part(world.rank, world.size)
        stream = ShuffledStream(data, *keys, part=part, block_size=reading.shuffle_buffer)
        return StreamReader(stream, batch_size=batch_size, steps=fit.steps, workers=reading.workers)
    places_at = partial(places_of_step, *keys, batch_size=fit.batch_size, num_images=len(data), world=world)
    return Reader(data, places_at, steps=fit.steps, workers=reading.workers, keep=is_kept(data, reading))


def is_kept(data: ImageSource, reading: ReadingConfig) -> bool:
    """Whether the images of a data set stay in memory, decoded, once they were read."""
    if isinstance(data, ImageSet | LatentSet) or reading.cache == "none":
        return False  # they need no decoding
    return reading.cache == "memory" or (not reading.workers and size_in_memory(data) <= SMALL)


def places_of_step(*keys_and_step: Key, batch_size: int, num_images: int, world: World) -> Tensor:
    """The places of this process's images of a step, which comes last; a function that can be sent to a worker."""
    *keys, step = keys_and_step
    return world.share(indices_at(int(step), *keys, batch_size=batch_size, num_images=num_images))


def some_examples(data: Source, limit: int, *keys: Key) -> Iterator[Examples]:
    """At most `limit` images at random places, or that many which come first in a stream; alike in every process."""
    if isinstance(data, ImageStream):
        stream = ShuffledStream(data, *keys, part=Part(0, 1), block_size=BATCH)
        reader = StreamReader(stream, batch_size=BATCH, steps=limit // BATCH, workers=0)
        yield from map(reader, range(reader.steps))
        return
    for places in permutation(len(data), *keys)[:limit].split(BATCH):
        yield Examples(data.read(places), data.labels[places], places.tolist())
