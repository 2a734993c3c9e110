"""Shuffled streaming whose order depends only on its keys, and that can start at any step."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count, islice
from typing import TypeVar

from biflow.data.datasets import ImageStream, RawExample
from biflow.data.randomness import Key, permutation
from biflow.data.reader import Examples, Reader, read_ahead
from biflow.errors import InputError

T = TypeVar("T")


class ShuffledStream:
    """One process's examples of a stream, over endless epochs, in an order determined by the keys.

    Each epoch shuffles the shards and distributes them to the processes, or single examples if there are fewer shards
    than processes. Each process shuffles its examples within blocks. `lengths` caches shard lengths, for seeking.
    """

    def __init__(self, source: ImageStream, *keys: Key, rank: int, size: int, block_size: int) -> None:
        self.source, self.keys, self.block_size = source, keys, block_size
        self.rank, self.size = rank, size
        self.deals_shards = source.num_shards >= self.size
        self.first, self.stride = (0, 1) if self.deals_shards else (rank, size)
        self.lengths: dict[int, int] = {}

    def blocks(self, position: int) -> Iterator[list[RawExample]]:
        """Lists of examples, starting at the process's example `position`, counted over all epochs."""
        epoch, position = self.find(position)
        number, skip = divmod(position, self.block_size)
        for block in self._whole_blocks(epoch, number):
            yield block[skip:]
            skip = 0

    def find(self, position: int) -> tuple[int, int]:
        """The epoch of the process's example `position`, and its position in that epoch."""
        for epoch in count():
            total = 0
            for shard in self._shards(epoch) if position else ():
                total += self._length(shard)
                if self.first + position * self.stride < total:
                    return epoch, position
            if not position:
                return epoch, 0
            position -= self._check(len(range(self.first, total, self.stride)))
        raise AssertionError("epochs are endless")

    def _whole_blocks(self, epoch: int, number: int) -> Iterator[list[RawExample]]:
        for later in count(epoch):
            skip = number * self.block_size * self.stride
            examples = islice(self._epoch(later, skip), self.first, None, self.stride)
            while block := list(islice(examples, self.block_size)):
                order = permutation(len(block), *self.keys, "block", later, number, self.rank)
                yield [block[i] for i in order.tolist()]
                number += 1
            self._check(number)
            number = 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[RawExample]:
        """The examples of this epoch's shards in sequence, without the first `skip`."""
        for shard in self._shards(epoch):
            if skip and skip >= self._length(shard):
                skip -= self._length(shard)
                continue
            length = skip
            for length, example in enumerate(self.source.encoded(shard, skip), start=skip + 1):  # noqa: B007
                yield example
            self.lengths[shard], skip = length, 0

    def _shards(self, epoch: int) -> list[int]:
        order: list[int] = permutation(self.source.num_shards, *self.keys, "shards", epoch).tolist()
        return order[self.rank :: self.size] if self.deals_shards else order

    def _length(self, shard: int) -> int:
        if shard not in self.lengths:
            self.lengths[shard] = self.source.count(shard)
        return self.lengths[shard]

    def _check(self, images: int) -> int:
        if not images:
            raise InputError(
                f"Expected images for each of {self.size} processes; there is none for process {self.rank}. "
                "Start fewer processes."
            )
        return images


RawBatch = tuple[list[RawExample], list[int]]
"""One process's examples of a step, and their indices as keys of random numbers."""


def stream_reader(stream: ShuffledStream, *, batch_size: int, steps: int, workers: int) -> Reader:
    """Read a stream step by step, in full batches: the last batch of an epoch continues with the next epoch.

    Workers prefetch the next block and decode the next steps without changing the result.
    """

    def start(step: int) -> Iterator[Examples | InputError]:
        batches = encoded_batches(stream, range(step, steps), batch_size, ahead=workers > 0)
        return read_ahead(partial(decode_batch, stream.source), batches, workers)

    return Reader(start)


def decode_batch(source: ImageStream, batch: RawBatch) -> Examples:
    """Decode the examples of one step."""
    examples, indices = batch
    return Examples(*source.decode(examples), indices)


def encoded_batches(stream: ShuffledStream, steps: range, batch_size: int, *, ahead: bool) -> Iterator[RawBatch]:
    """The process's batches of these steps; `ahead` prefetches the next block in a thread."""
    blocks = stream.blocks(steps.start * batch_size)
    examples = chain.from_iterable(prefetched(blocks) if ahead else blocks)
    for step in steps:
        positions = range(step * batch_size, (step + 1) * batch_size)
        batch = list(islice(examples, batch_size))
        yield batch, [stream.rank + stream.size * position for position in positions]


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The items of an endless iterator, with the next one computed in a thread."""
    thread = ThreadPoolExecutor(1)
    try:
        future = thread.submit(next, items)
        while True:
            item = future.result()
            future = thread.submit(next, items)
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
