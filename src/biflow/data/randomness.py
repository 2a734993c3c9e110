"""Randomness as an input: every draw is a pure function of its keys.

A draw depends on what it is for - (seed, step, image index), say - and on nothing else: not on the batch
size, the number of processes, or what was drawn before.  That is what makes resuming exact.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

Key = int | str


def stream(*keys: Key) -> np.random.Generator:
    """A generator of its own for these keys: Philox, with their 128-bit hash as its key.

    >>> stream("demo", 3).random() == stream("demo", 3).random()
    True
    """
    digest = blake2b(repr(keys).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Networks made in this block get weights that depend on the seed alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal_for(indices: Iterable[int], shape: tuple[int, ...], *keys: Key) -> Tensor:
    """Standard normal float32 numbers, one draw an image index: (len(indices), *shape), on the CPU."""
    return torch.from_numpy(np.stack([stream(*keys, i).standard_normal(shape, np.float32) for i in indices]))


def content_keys(images: Tensor) -> list[int]:
    """A number for each of some images (N, ...) that depends on its values alone, to draw for the image itself."""
    return [int.from_bytes(blake2b(image.numpy().tobytes(), digest_size=8).digest(), "big") for image in images.cpu()]


def uniform_for(indices: Iterable[int], shape: tuple[int, ...], *keys: Key) -> Tensor:
    """Float32 numbers in [0, 1), one draw an image index: (len(indices), *shape), on the CPU."""
    return torch.from_numpy(np.stack([stream(*keys, i).random(shape, np.float32) for i in indices]))


def permutation(count: int, *keys: Key) -> Tensor:
    """The numbers 0 .. count - 1 in random order: (count,) int64."""
    return torch.from_numpy(stream(*keys).permutation(count))
