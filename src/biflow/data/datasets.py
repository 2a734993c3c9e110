"""Image data sets with labels, and the order of their images in training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from biflow.data.randomness import Key, permutation
from biflow.errors import choose
from biflow.extras import require

DIGITS_TEST_SIZE = 360


class LabelledImages(Protocol):
    """What map-style and streamed data sets have in common."""

    class_names: tuple[str, ...]  # by label; empty for unlabelled data
    image_shape: tuple[int, int, int]  # (P, H, W) of every decoded image
    rejected: Mapping[str, str] = MappingProxyType({})  # unreadable files, which were left out: name -> reason

    def without_classes(self) -> Self:
        """The same images without class names, all with label 0, the null label of unconditional models."""


class ImageSource(LabelledImages, Protocol):
    """Map-style data set: images are read by index, and an index always returns the same image."""

    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Tensor:
        """Read images by index (n,): uint8 (n, P, H, W)."""

    def listing_digest(self) -> str:
        """A digest of which images these are, in order, with their classes; a copy of the data has the same."""
        return digest(self.class_names, self.labels)

    def fingerprint(self) -> str:
        """A digest that also changes when an image is written anew, where the data set can tell."""
        return self.listing_digest()

    def without_classes(self) -> Self:
        """The same images without class names, all with label 0, the null label of unconditional models."""
        plain = copy(self)
        vars(plain).update(labels=torch.zeros_like(self.labels), class_names=())
        return plain


class RawExample(NamedTuple):
    """One undecoded example of a stream."""

    name: str  # for error messages
    image: Any  # as the stream's `decode` takes it
    label: int


@runtime_checkable
class ImageStream(LabelledImages, Protocol):
    """Streamed data set in shards of unknown length, each read from its start and always in the same order."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""

    def encoded(self, shard: int, start: int) -> Iterator[RawExample]:
        """Iterate over the undecoded examples of a shard from index `start`."""

    def count(self, shard: int) -> int:
        """Number of examples in a shard; may have to read it."""

    def decode(self, examples: Sequence[RawExample]) -> tuple[Tensor, Tensor]:
        """Decode n examples: images, uint8 (n, P, H, W), and labels (n,)."""


Source = ImageSource | ImageStream
"""A training data set: map-style or streamed."""


@dataclass(frozen=True)
class ImageSet(ImageSource):
    """Images in memory: uint8 (N, P, H, W), labels int64 (N,), and class names."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(P, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, indices: Tensor) -> Tensor:
        """Read images by index (n,): uint8 (n, P, H, W)."""
        return self.images[indices]

    def listing_digest(self) -> str:
        """A digest of the images, their labels and class names."""
        return digest(self.class_names, self.labels, self.images)

    def take(self, indices: Tensor | slice) -> "ImageSet":
        """The subset at these indices."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)


def digest(*parts: str | Sequence[str] | Tensor) -> str:
    """SHA-256 of texts and tensors, in hexadecimal.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    found = sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.contiguous().numpy().tobytes())
        else:
            found.update(f"{part!r}\n".encode(errors="surrogatepass"))
    return found.hexdigest()


def is_held_out(key: bytes, share: float) -> bool:
    """Whether an image is in the test split; a hash of its key, so that adding images moves no others."""
    return int.from_bytes(sha256(key).digest()[:8], "big") < share * 2**64


S_co = TypeVar("S_co", bound=Source, covariant=True)


@dataclass(frozen=True)
class Split(Generic[S_co]):
    """Training and test data; the test data may be empty."""

    train: S_co
    test: S_co


def load_data(name: str) -> Split[ImageSet]:
    """Load an in-memory data set by name."""
    return choose(DATASETS, name, "data set")()


def digits() -> Split[ImageSet]:
    """scikit-learn's 1,797 handwritten 8x8 digits: 1,437 for training, 360 for testing.

    The split is fixed and stratified by class. Values 0 to 16 are scaled to grey levels 0 to 255.
    """
    require("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).long()
    full = ImageSet(images, labels, tuple(str(name) for name in bundle.target_names))
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=0
    )
    return Split(full.take(train), full.take(test))


def with_shifts(data: ImageSet) -> ImageSet:
    """The images and their one-pixel shifts in all eight directions, padded with black."""
    height, width = data.images.shape[-2:]
    padded = F.pad(data.images, (1, 1, 1, 1))
    shifts = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return ImageSet(torch.cat(shifts), data.labels.repeat(len(shifts)), data.class_names)


DATASETS: Mapping[str, Callable[[], Split[ImageSet]]] = {"digits": digits}


_epoch_order = lru_cache(maxsize=4)(permutation)


def indices_at(step: int, *keys: Key, batch_size: int, num_images: int) -> Tensor:
    """Indices (batch_size,) of one step's images, from shuffled epochs without gaps; depends only on (keys, step)."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        order = _epoch_order(num_images, *keys, "epoch", epoch)
        indices[epochs == epoch] = order[positions[epochs == epoch] % num_images]
    return indices
