"""Reading a stream of images in an order that depends on its keys alone, and that can be entered at any step."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice
from typing import NamedTuple, TypeVar

from torch.utils.data import Dataset

from biflow.data.datasets import ImageStream, RawExample
from biflow.data.randomness import Key, permutation
from biflow.data.reader import Examples, loader, unless_fault
from biflow.errors import InputError

T = TypeVar("T")


class Part(NamedTuple):
    """One of the processes that share a stream."""

    rank: int
    size: int


class ShuffledStream:
    """One process's examples of a stream, epoch after epoch without an end, in an order that the keys determine.

    Each epoch has an order of the shards of its own, and deals them out to the processes; where there are fewer shards
    than processes, it deals out the single examples.  What a process gets is shuffled in blocks.  All that going to a
    place far ahead needs to know is how long the shards are: `lengths` keeps what was learnt of that.
    """

    def __init__(self, source: ImageStream, *keys: Key, part: Part, block_size: int) -> None:
        self.source, self.keys, self.part, self.block_size = source, keys, part, block_size
        self.deals_shards = source.num_shards >= part.size
        self.first, self.stride = (0, 1) if self.deals_shards else part
        self.lengths: dict[int, int] = {}

    def blocks(self, place: int) -> Iterator[list[RawExample]]:
        """Examples in lists, beginning with the process's example `place`, counted over all epochs."""
        epoch, place = self.find(place)
        number, skip = divmod(place, self.block_size)
        for block in self._whole_blocks(epoch, number):
            yield block[skip:]
            skip = 0

    def find(self, place: int) -> tuple[int, int]:
        """The epoch of the process's example `place`, and its place in that epoch."""
        for epoch in count():
            total = 0
            for shard in self._shards(epoch) if place else ():
                total += self._length(shard)
                if self.first + place * self.stride < total:
                    return epoch, place
            if not place:
                return epoch, 0
            place -= self._check(len(range(self.first, total, self.stride)))
        raise AssertionError("epochs have no end")

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
        """The examples of this epoch's shards, one after the other, without the first `skip`."""
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
                "Start fewer, or give a larger data set."
            )
        return images


class EncodedBatch(NamedTuple):
    """One process's examples of a step, and the numbers that the random numbers of each are drawn for."""

    examples: list[RawExample]
    indices: list[int]


class Decoded(Dataset[Examples | InputError]):
    """Encoded batches -> examples; or why there are none."""

    def __init__(self, source: ImageStream) -> None:
        self.source = source

    def __getitem__(self, batch: EncodedBatch) -> Examples | InputError:
        try:
            return Examples(*self.source.decode(batch.examples), batch.indices)
        except InputError as error:
            return error


class StreamReader:
    """A function step -> `Examples` of a stream, quick if it is the step after the last that was asked for.

    With workers the next block is being read, and the steps that follow are being decoded, meanwhile; what comes out
    is the same.  Every batch is full: one that an epoch does not fill goes on with the next epoch.
    """

    def __init__(self, stream: ShuffledStream, *, batch_size: int, steps: int, workers: int) -> None:
        self.stream, self.batch_size, self.steps, self.workers = stream, batch_size, steps, workers
        self.ahead: Iterator[Examples | InputError] = iter(())
        self.next_step = -1

    def __call__(self, step: int) -> Examples:
        """The examples of one step."""
        if step != self.next_step:
            self.ahead = iter(())  # the old workers end before new ones, which would inherit them, begin
            self.ahead = self._decoded(range(step, self.steps))
        self.next_step = step + 1
        return unless_fault(next(self.ahead))

    def state(self) -> dict[str, int]:
        """How long the shards are that were read so far, which lets `restore` and a step far ahead skip them."""
        return {str(shard): length for shard, length in sorted(self.stream.lengths.items())}

    def restore(self, state: Mapping[str, int]) -> None:
        """Take up what `state` gave, in any process; without it the same steps give the same examples, only later."""
        self.stream.lengths |= {int(shard): length for shard, length in state.items()}

    def _decoded(self, steps: range) -> Iterator[Examples | InputError]:
        # nothing here may refer to this reader: its workers end when it does
        batches = encoded_batches(self.stream, steps, self.batch_size, ahead=self.workers > 0)
        decoded = Decoded(self.stream.source)
        if not self.workers:
            return map(decoded.__getitem__, batches)
        return iter(loader(decoded, batches, self.workers))


def encoded_batches(stream: ShuffledStream, steps: range, batch_size: int, *, ahead: bool) -> Iterator[EncodedBatch]:
    """The process's batches of these steps; where asked for, the next block is read in a thread meanwhile."""
    blocks, part = stream.blocks(steps.start * batch_size), stream.part
    examples = chain.from_iterable(made_ahead(blocks) if ahead else blocks)
    for step in steps:
        places = range(step * batch_size, (step + 1) * batch_size)
        batch = list(islice(examples, batch_size))
        yield EncodedBatch(batch, [part.rank + part.size * place for place in places])


def made_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items without end, the next of which is made in a thread meanwhile."""
    thread = ThreadPoolExecutor(1)
    try:
        coming = thread.submit(next, items)
        while True:
            item = coming.result()
            coming = thread.submit(next, items)
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
