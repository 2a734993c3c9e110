"""Shuffled streaming whose order depends only on its keys, and that can start at any step."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice
from typing import NamedTuple, TypeVar

from torch.utils.data import Dataset

from biflow.data.datasets import ImageStream, RawExample
from biflow.data.randomness import Key, permutation
from biflow.data.reader import Examples, loader, raise_if_error
from biflow.errors import InputError

T = TypeVar("T")


class Part(NamedTuple):
    """One of the processes that share a stream."""

    rank: int
    size: int


class ShuffledStream:
    """One process's examples of a stream, over endless epochs, in an order determined by the keys.

    Each epoch shuffles the shards and distributes them to the processes, or single examples if there are fewer shards
    than processes. Each process shuffles its examples within blocks. Seeking needs the shards' lengths, which `lengths`
    caches.
    """

    def __init__(self, source: ImageStream, *keys: Key, part: Part, block_size: int) -> None:
        self.source, self.keys, self.part, self.block_size = source, keys, part, block_size
        self.deals_shards = source.num_shards >= part.size
        self.first, self.stride = (0, 1) if self.deals_shards else part
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
                order = permutation(len(block), *self.keys, "block", later, number, self.part.rank)
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
        return order[self.part.rank :: self.part.size] if self.deals_shards else order

    def _length(self, shard: int) -> int:
        if shard not in self.lengths:
            self.lengths[shard] = self.source.count(shard)
        return self.lengths[shard]

    def _check(self, images: int) -> int:
        if not images:
            raise InputError(
                f"Expected images for each of {self.part.size} processes; there is none for process {self.part.rank}. "
                "Start fewer processes, or use a larger data set."
            )
        return images


class EncodedBatch(NamedTuple):
    """One process's examples of a step, and their indices as keys of random numbers."""

    examples: list[RawExample]
    indices: list[int]


class DecodedExamples(Dataset[Examples | InputError]):
    """Decodes batches; returns errors instead of raising them."""

    def __init__(self, source: ImageStream) -> None:
        self.source = source

    def __getitem__(self, batch: EncodedBatch) -> Examples | InputError:
        try:
            return Examples(*self.source.decode(batch.examples), batch.indices)
        except InputError as error:
            return error


class StreamReader:
    """A function step -> `Examples` of a stream, fast for consecutive steps.

    Workers prefetch the next block and decode the next steps without changing the result. Every batch is full: the
    last batch of an epoch continues with the next epoch.
    """

    def __init__(self, stream: ShuffledStream, *, batch_size: int, steps: int, workers: int) -> None:
        self.stream, self.batch_size, self.steps, self.workers = stream, batch_size, steps, workers
        self.ahead: Iterator[Examples | InputError] = iter(())
        self.next_step = -1

    def __call__(self, step: int) -> Examples:
        """The examples of one step."""
        if step != self.next_step:
            self.ahead = iter(())  # stop the old workers first: new ones would inherit them
            self.ahead = self._decoded(range(step, self.steps))
        self.next_step = step + 1
        return raise_if_error(next(self.ahead))

    def state(self) -> dict[str, int]:
        """The lengths of the shards read so far, which speed up seeking after `restore`."""
        return {str(shard): length for shard, length in sorted(self.stream.lengths.items())}

    def restore(self, state: Mapping[str, int]) -> None:
        """Restore a state of any process; without it, steps give the same examples but seeking is slower."""
        self.stream.lengths |= {int(shard): length for shard, length in state.items()}

    def _decoded(self, steps: range) -> Iterator[Examples | InputError]:
        # must not reference this reader, whose deletion stops its workers
        batches = encoded_batches(self.stream, steps, self.batch_size, ahead=self.workers > 0)
        decoded = DecodedExamples(self.stream.source)
        if not self.workers:
            return map(decoded.__getitem__, batches)
        return iter(loader(decoded, batches, self.workers))


def encoded_batches(stream: ShuffledStream, steps: range, batch_size: int, *, ahead: bool) -> Iterator[EncodedBatch]:
    """The process's batches of these steps; `ahead` prefetches the next block in a thread."""
    blocks, part = stream.blocks(steps.start * batch_size), stream.part
    examples = chain.from_iterable(prefetched(blocks) if ahead else blocks)
    for step in steps:
        positions = range(step * batch_size, (step + 1) * batch_size)
        batch = list(islice(examples, batch_size))
        yield EncodedBatch(batch, [part.rank + part.size * position for position in positions])


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
