"""Which columns of a data set of `datasets` hold the images and the labels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.errors import InputError

IMAGE_NAMES = ("image", "img", "jpg", "png")
LABEL_NAMES = ("label", "labels", "cls", "fine_label")

HubData = Any  # datasets.Dataset or datasets.IterableDataset, which are imported only where they are used


class Columns(NamedTuple):
    """Which columns of which data set hold the images and the labels; there may be no labels."""

    image: str
    label: str | None
    origin: str  # the name of the data set, for messages

    @property
    def names(self) -> list[str]:
        """Those that are read."""
        return [self.image, self.label] if self.label else [self.image]

    def of(self, data: HubData) -> HubData:
        """The data with these columns alone, images as the bytes of their files."""
        from datasets import Image

        return data.select_columns(self.names).cast_column(self.image, Image(decode=False))

    def class_names_of(self, data: HubData) -> tuple[str, ...]:
        """The names of the classes, where the data has them."""
        return tuple(getattr(data.features[self.label], "names", ())) if self.label else ()

    def are_in(self, data: HubData) -> bool:
        """Whether the data has these columns."""
        return set(self.names) <= set(data.features)

    def labels_of(self, data: HubData) -> Tensor:
        """The labels of all images, (N,), read without the images; 0 where there is no column of them."""
        if self.label is None:
            return torch.zeros(len(data), dtype=torch.int64)
        found = data.with_format("arrow", columns=[self.label])[:][self.label]
        return torch.from_numpy(found.fill_null(-1).to_numpy().astype("int64"))


def find_columns(data: HubData, reading: ReadingConfig, origin: str) -> Columns:
    """The columns of images and labels: those that `reading` names, else by type, else by name."""
    for key in ("image_column", "label_column"):
        asked = getattr(reading, key)
        if asked is not None and asked not in data.features:
            raise InputError(
                f"Expected reading.{key} to be one of {', '.join(data.features)}, the columns of {origin!r}; "
                f"got {asked!r}. Set it to one of them."
            )
    image = reading.image_column or _find_images(data, origin)
    if not _shows_image(data, image):
        raise InputError(f"Expected images in column {image!r} of {origin!r}; got none. Set reading.image_column=NAME.")
    return Columns(image, _find_labels(data, reading.label_column, origin), origin)


def _find_images(data: HubData, origin: str) -> str:
    from datasets import Image

    typed = [name for name, feature in data.features.items() if isinstance(feature, Image)]
    if len(typed) > 1:
        raise InputError(
            f"Expected one column of images in {origin!r}; got {', '.join(typed)}. Set reading.image_column={typed[0]}."
        )
    named = [name for name in IMAGE_NAMES if name in data.features and _shows_image(data, name)]
    if not (typed or named):
        raise InputError(
            f"Expected a column of images in {origin!r}; got {', '.join(data.features)}. Cast the one that holds them: "
            "cast_column(NAME, datasets.Image()), or set reading.image_column=NAME."
        )
    return (typed or named)[0]


def _shows_image(data: HubData, column: str) -> bool:
    from datasets import Image

    if isinstance(data.features[column], Image):
        return True
    try:
        Image().decode_example(next(iter(Columns(column, None, "").of(data)))[column])
    except Exception:  # what is no image shows itself in many ways
        return False
    return True


def _find_labels(data: HubData, asked: str | None, origin: str) -> str | None:
    from datasets import ClassLabel

    typed = [name for name, feature in data.features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in LABEL_NAMES if name in (typed or data.features)]
    found = [asked] if asked else named[:1] or typed
    if len(found) > 1:
        raise InputError(
            f"Expected one column of labels in {origin!r}; got {', '.join(found)}. Set reading.label_column={found[0]}."
        )
    for name in found:
        kind = getattr(data.features[name], "dtype", type(data.features[name]).__name__)
        if not kind.startswith(("int", "uint")):
            raise InputError(
                f"Expected integers in column {name!r} of {origin!r}, the labels; got {kind}. Make them a ClassLabel: "
                f"class_encode_column({name!r}), or set reading.label_column=NAME."
            )
    return found[0] if found else None
