"""Counter-based randomness: every draw is a pure function of its keys.

A draw depends only on keys such as (seed, step, image index), not on the batch size, the number of processes or earlier
draws, so that resuming is exact. Numbers for a batch come from SplitMix64 (Steele, Lea and Flood, 2014): an image's
stream starts at the hash of the keys and its index, and word j depends only on that start and j. The playground's
noise.js computes the same numbers.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Key = int | str
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

GOLDEN, FIRST_FACTOR, SECOND_FACTOR = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
CHUNK = 2**16  # words per step, to stay in the CPU cache


def stream(*keys: Key) -> np.random.Generator:
    """A NumPy generator for these keys: Philox, keyed by their 128-bit hash.

    >>> stream("demo", 3).random() == stream("demo", 3).random()
    True
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_hash(keys, 16), "big")))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Initialise networks created in this block from the seed, in float32, as tensors that can be differentiated.

    The caller's global generator, default dtype and inference mode are left as they are.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def normal_for(indices: Iterable[int], shape: tuple[int, ...], *keys: Key) -> Tensor:
    """Standard normal float32 noise per image index: (len(indices), *shape), on the CPU.

    Equal on every machine up to the last bits of the logarithm, sine and cosine.
    """
    starts, size = _starts(indices, keys), math.prod(shape)
    pairs = np.empty((len(starts), 2, (size + 1) // 2), np.float32)
    _by_chunks(pairs.shape[2], len(starts), lambda rows: _fill_normal(pairs[rows], starts[rows]))
    return torch.from_numpy(pairs.reshape(len(starts), 2 * pairs.shape[2])[:, :size].reshape(len(starts), *shape))


def content_keys(images: Tensor) -> list[int]:
    """One key per image (N, ...), a hash of its values, for noise that depends on the image itself."""
    return [int.from_bytes(blake2b(image.numpy().tobytes(), digest_size=8).digest(), "big") for image in images.cpu()]


def uniform_for(indices: Iterable[int], shape: tuple[int, ...], *keys: Key) -> Tensor:
    """Uniform float32 numbers in [0, 1) per image index: (len(indices), *shape), on the CPU."""
    starts, size = _starts(indices, keys), math.prod(shape)
    pairs = np.empty((len(starts), (size + 1) // 2, 2), np.float32)
    _by_chunks(pairs.shape[1], len(starts), lambda rows: _fill_uniform(pairs[rows], starts[rows]))
    return torch.from_numpy(pairs.reshape(len(starts), 2 * pairs.shape[1])[:, :size].reshape(len(starts), *shape))


def permutation(count: int, *keys: Key) -> Tensor:
    """A random permutation of 0 ... count - 1: (count,) int64."""
    return torch.from_numpy(stream(*keys).permutation(count))


def _hash(keys: tuple[Key, ...], size: int) -> bytes:
    """A hash of the keys; of integers, including NumPy's, only the value counts."""
    plain = tuple(key if isinstance(key, str) else int(key) for key in keys)
    return blake2b(repr(plain).encode(), digest_size=size).digest()


def _starts(indices: Iterable[int], keys: tuple[Key, ...]) -> Words:
    """The start of each index's stream, (N,)."""
    base = np.frombuffer(_hash(keys, 8), ">u8").astype(np.uint64)
    return _mix(base + _mix(np.fromiter(indices, np.uint64)))


def _words(starts: Words, count: int) -> Words:
    """The first `count` words of these streams: (N, count)."""
    return _mix(starts[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def _mix(z: Words) -> Words:
    """The finalizer of SplitMix64, in place."""
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= FIRST_FACTOR
    np.right_shift(z, 27, out=shifted)
    z ^= shifted
    z *= SECOND_FACTOR
    np.right_shift(z, 31, out=shifted)
    z ^= shifted
    return z


def _halves(words: Words) -> npt.NDArray[np.uint32]:
    """(N, count) words -> their low and high halves, (N, count, 2)."""
    return words.astype("<u8", copy=False).view("<u4").reshape(*words.shape, 2)


def _fill_uniform(pairs: Floats, starts: Words) -> None:
    """Fill pairs (N, count, 2) from the upper 24 bits of both halves of each word."""
    np.multiply(_halves(_words(starts, pairs.shape[1])) >> np.uint32(8), np.float32(2**-24), out=pairs)


def _fill_normal(pairs: Floats, starts: Words) -> None:
    """Fill pairs (N, 2, count) with two normal numbers per word (Box and Muller, 1958)."""
    halves = _halves(_words(starts, pairs.shape[2]))
    radius, angle = halves[..., 0].astype(np.float32), halves[..., 1].view(np.int32).astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(math.pi * 2**-31)
    np.multiply(np.cos(angle), radius, out=pairs[:, 0])
    np.multiply(np.sin(angle), radius, out=pairs[:, 1])


def _by_chunks(words: int, count: int, fill: Callable[[slice], None]) -> None:
    """Fill `count` rows of this many words in cache-sized chunks, on torch's number of threads."""
    rows = max(1, CHUNK // max(1, words))
    chunks = [slice(first, first + rows) for first in range(0, count, rows)]
    threads = torch.get_num_threads()
    if threads == 1 or len(chunks) == 1:
        list(map(fill, chunks))
    else:
        list(_threads(threads).map(fill, chunks))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "randomness")
