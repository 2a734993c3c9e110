"""Randomness as an input: every draw is a pure function of its keys.

A draw depends on what it is for - (seed, step, image index), say - and on nothing else: not on the batch
size, the number of processes, or what was drawn before.  That is what makes resuming exact.
"""

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor

Key = int | str


def stream(*keys: Key) -> torch.Generator:
    """A generator of its own for these keys.

    >>> a, b = (torch.rand(1, generator=stream("demo", 3)) for _ in range(2))
    >>> bool(a == b)
    True
    """
    digest = blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))


def normal_for(indices: Iterable[int], shape: tuple[int, ...], *keys: Key) -> Tensor:
    """Standard normal numbers, one draw an image index: (len(indices), *shape), on the CPU."""
    return torch.stack([torch.randn(shape, generator=stream(*keys, index)) for index in indices])


def uniform_for(indices: Iterable[int], *keys: Key) -> Tensor:
    """One number in [0, 1) for every image index: (len(indices),), on the CPU."""
    return torch.cat([torch.rand(1, generator=stream(*keys, index)) for index in indices])
