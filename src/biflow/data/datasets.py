"""Data sets of images with labels, and the order in which training sees them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from biflow.data.randomness import Key, permutation
from biflow.errors import InputError, nearest
from biflow.extras import require

DIGITS_TEST_SIZE = 360


class ImageSource(Protocol):
    """Images with labels, each read by its place; the same place always gives the same image."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,), of all images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; none where there are no classes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, H, W) of every image."""

    @property
    def rejected(self) -> Mapping[str, str]:
        """What could not be read, and is none of the images: name -> reason."""

    def __len__(self) -> int: ...

    def read(self, places: Tensor) -> Tensor:
        """The images at these places (n,): uint8 (n, P, H, W)."""

    def without_classes(self) -> "ImageSource":
        """The images alone, every one of label 0, which is "no class" where there are no classes."""


class Encoded(NamedTuple):
    """One example of a stream, as it came."""

    name: str  # which one it is, for messages
    image: Any  # what `decode` of its stream reads
    label: int


@runtime_checkable
class ImageStream(Protocol):
    """Images with labels that come in shards, each of which is read from its front on; how many there are is unknown.

    A shard always gives the same examples in the same order.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; none where there are no classes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, H, W) of every image, once decoded."""

    @property
    def rejected(self) -> Mapping[str, str]:
        """Files that could not be read, and why: none, since a stream is not looked through beforehand."""

    @property
    def num_shards(self) -> int:
        """How many shards there are."""

    def encoded(self, shard: int, start: int) -> Iterator[Encoded]:
        """The examples of a shard from this one on."""

    def count(self, shard: int) -> int:
        """How many examples a shard has; it may have to be read for that."""

    def decode(self, examples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """n examples -> images, uint8 (n, P, H, W), and labels (n,)."""

    def without_classes(self) -> "ImageStream":
        """The images alone, every one of label 0, which is "no class" where there are no classes."""


Source = ImageSource | ImageStream
"""What training reads: images by their place, or as they come."""


@dataclass(frozen=True)
class ImageSet:
    """Images in memory: uint8 (N, P, H, W), labels int64 (N,), and the names of the classes."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def rejected(self) -> Mapping[str, str]:
        """Nothing: images in memory have been read."""
        return {}

    def read(self, places: Tensor) -> Tensor:
        """The images at these places (n,): uint8 (n, P, H, W)."""
        return self.images[places]

    def without_classes(self) -> "ImageSet":
        """The images alone, every one of label 0, which is "no class" where there are no classes."""
        return ImageSet(self.images, torch.zeros_like(self.labels), ())

    def take(self, indices: Tensor | slice) -> "ImageSet":
        """The images at these places."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)


S_co = TypeVar("S_co", bound=Source, covariant=True)


@dataclass(frozen=True)
class Split(Generic[S_co]):
    """What training sees and what it never sees, which may be nothing."""

    train: S_co
    test: S_co


def load_data(name: str) -> Split[ImageSet]:
    """A data set that lies in memory, by name."""
    if name not in DATASETS:
        raise InputError(f"Unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]()


def digits() -> Split[ImageSet]:
    """The 1,797 handwritten 8x8 digits that ship with scikit-learn: 1,437 to train, 360 to test.

    The split is fixed and stratified by class.  Values 0..16 become grey levels 0..255.
    """
    require("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = torch.from_numpy(bundle.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).long()
    everything = ImageSet(images, labels, tuple(str(name) for name in bundle.target_names))
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=DIGITS_TEST_SIZE, stratify=labels, random_state=0
    )
    return Split(everything.take(train), everything.take(test))


def with_shifts(data: ImageSet) -> ImageSet:
    """The images, and each of them moved by one pixel in all eight directions; black moves in."""
    height, width = data.images.shape[-2:]
    padded = F.pad(data.images, (1, 1, 1, 1))
    shifts = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return ImageSet(torch.cat(shifts), data.labels.repeat(len(shifts)), data.class_names)


DATASETS: Mapping[str, Callable[[], Split[ImageSet]]] = {"digits": digits}


def indices_at(step: int, *keys: Key, batch_size: int, num_images: int) -> Tensor:
    """Places (batch_size,) of the images of one step: shuffled epochs laid end to end.

    A pure function of (keys, step), so that training can start at any step.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // num_images
    chosen = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        order = _epoch_order(num_images, *keys, "epoch", epoch)
        chosen[epochs == epoch] = order[places[epochs == epoch] % num_images]
    return chosen


@lru_cache(maxsize=4)
def _epoch_order(num_images: int, *keys: Key) -> Tensor:
    return permutation(num_images, *keys)
