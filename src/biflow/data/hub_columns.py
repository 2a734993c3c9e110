"""Finds the image and label columns of a data set of `datasets`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.console import printable
from biflow.errors import InputError

IMAGE_NAMES = ("image", "img", "jpg", "png")
LABEL_NAMES = ("label", "labels", "cls", "fine_label")
ROWS_AT_ONCE = 1000

HubData = Any  # datasets.Dataset or datasets.IterableDataset, which are imported only where they are used


class Columns(NamedTuple):
    """The image and label columns of a data set; label is None without labels."""

    image: str
    label: str | None
    origin: str  # the name of the data set, for messages

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [self.image, self.label] if self.label else [self.image]

    def of(self, data: HubData) -> HubData:
        """Select these columns, with images as undecoded bytes."""
        from datasets import Image

        return data.select_columns(self.names).cast_column(self.image, Image(decode=False))

    def class_names_of(self, data: HubData) -> tuple[str, ...]:
        """The class names, printable, if the data has them."""
        return tuple(map(printable, getattr(data.features[self.label], "names", ()))) if self.label else ()

    def are_in(self, data: HubData) -> bool:
        """Whether the data has these columns."""
        return set(self.names) <= set(data.features)

    def labels_of(self, data: HubData) -> Tensor:
        """All labels (N,), read without the images; 0 without a label column, -1 where missing."""
        if self.label is None:
            return torch.zeros(len(data), dtype=torch.int64)
        labels = data.with_format("arrow", columns=[self.label])[:][self.label]
        try:
            return torch.from_numpy(labels.cast("int64").fill_null(-1).to_numpy().copy())
        except ValueError:
            raise InputError(
                f"Expected labels below 2**63 in column {self.label!r} of {self.origin!r}; got a larger one. "
                f"Number the classes with class_encode_column({self.label!r})."
            ) from None

    def originals(self, data: HubData) -> Tensor:
        """The index (N,) of the first image that has the same bytes as each; only images of equal length are read."""
        lengths = [len(content) for content in self._contents(data)]
        common = {length for length, count in Counter(lengths).items() if length and count > 1}
        first: dict[bytes, int] = {}
        found = torch.arange(len(lengths))
        for i, content in enumerate(self._contents(data)):
            if lengths[i] in common:
                found[i] = first.setdefault(blake2b(content, digest_size=16).digest(), i)
        return found

    def _contents(self, data: HubData) -> Iterator[Any]:
        """The encoded images, as buffers: stored, or mapped from their files; empty if missing or elsewhere."""
        from pyarrow import memory_map  # type: ignore[import-untyped]

        for rows in self.of(data).with_format("arrow").iter(ROWS_AT_ONCE):
            for row in rows[self.image]:
                content: Any = b""
                with suppress(OSError, TypeError, ValueError):  # missing; not on this machine; an empty file
                    content = row["bytes"].as_buffer() or memory_map(row["path"].as_py()).read_buffer()
                yield content


def find_columns(data: HubData, reading: ReadingConfig, origin: str) -> Columns:
    """Find the image and label columns: named in `reading`, else by type, else by name."""
    for key in ("image_column", "label_column"):
        name = getattr(reading, key)
        if name is not None and name not in data.features:
            names = ", ".join(data.features)
            raise InputError(
                f"Expected reading.{key} to be one of {names}, the columns of {origin!r}; got {name!r}. Set it to one."
            )
    image = reading.image_column or _find_images(data, origin)
    if not _has_images(data, image):
        raise InputError(f"Expected images in column {image!r} of {origin!r}; got none. Set reading.image_column=NAME.")
    return Columns(image, _find_labels(data, reading.label_column, origin), origin)


def _find_images(data: HubData, origin: str) -> str:
    from datasets import Image

    typed = [name for name, feature in data.features.items() if isinstance(feature, Image)]
    if len(typed) > 1:
        raise InputError(
            f"Expected one column of images in {origin!r}; got {', '.join(typed)}. Set reading.image_column={typed[0]}."
        )
    named = [name for name in IMAGE_NAMES if name in data.features and _has_images(data, name)]
    if not (typed or named):
        raise InputError(
            f"Expected a column of images in {origin!r}; got {', '.join(data.features)}. Cast it with "
            "cast_column(NAME, datasets.Image()), or set reading.image_column=NAME."
        )
    return (typed or named)[0]


def _has_images(data: HubData, column: str) -> bool:
    from datasets import Image

    if isinstance(data.features[column], Image):
        return True
    try:
        Image().decode_example(next(iter(Columns(column, None, "").of(data)))[column])
    except Exception:  # decoders raise a dozen types
        return False
    return True


def _find_labels(data: HubData, column: str | None, origin: str) -> str | None:
    from datasets import ClassLabel

    typed = [name for name, feature in data.features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in LABEL_NAMES if name in (typed or data.features)]
    candidates = [column] if column else named[:1] or typed
    if len(candidates) > 1:
        raise InputError(
            f"Expected one column of labels in {origin!r}; got {', '.join(typed)}. Set reading.label_column={typed[0]}."
        )
    for name in candidates:
        kind = getattr(data.features[name], "dtype", type(data.features[name]).__name__)
        if not kind.startswith(("int", "uint")):
            raise InputError(
                f"Expected integer labels in column {name!r} of {origin!r}; got {kind}. Convert them with "
                f"class_encode_column({name!r}), or set reading.label_column=NAME."
            )
    return candidates[0] if candidates else None
