"""Class names and indices as labels, and the labels of data sets."""

from collections.abc import Sequence
from numbers import Integral
from unicodedata import normalize

import torch
from torch import Tensor

from biflow.console import counted, say_once, some
from biflow.errors import InputError, nearest

Labels = Sequence[int | str] | Tensor
"""Classes by index or name; the index after the last is the null label."""


def label_of(name: int | str, num_classes: int, class_names: Sequence[str] = ()) -> int:
    """The label of a class, by name or else by index; where names are other numbers, "#0" is an index, "0" is not.

    >>> label_of("dog", 2, ["cat", "dog"]), label_of("0", 2, ["cat", "dog"]), label_of("2", 2, ["1", "2"])
    (1, 0, 1)
    >>> label_of("#0", 2, ["1", "2"])
    0
    """
    names = tuple(class_names) if num_classes else ()
    if isinstance(name, bool) or not isinstance(name, str | Integral):
        raise InputError(f"Expected a class by index or name; got {name!r}.")
    if isinstance(name, str) and (known := _place(name, names)) is not None:
        return known
    if isinstance(name, str) and name[:1] == "#" and _is_number(name[1:]):
        return int(name[1:])
    if isinstance(name, str) and not (_is_number(name) and not _are_other_numbers(names)):
        if not num_classes:
            raise InputError(f"Expected no class, got {name!r}: this model has no classes. Leave it out.")
        if not names:
            raise InputError(f"Unknown class {name!r}: the classes have no names. Give an index below {num_classes}.")
        raise InputError(f"Unknown class {name!r}; {nearest(name, names)}")
    return int(name)


def _place(name: str, names: Sequence[str]) -> int | None:
    """Where a name is among others, however its accents are encoded."""
    if name in names:
        return names.index(name)
    alike = [i for i, each in enumerate(names) if normalize("NFC", each) == normalize("NFC", name)]
    return alike[0] if alike else None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _are_other_numbers(names: Sequence[str]) -> bool:
    """Whether names are numbers, but not those of their places."""
    return any(map(_is_number, names)) and list(names) != [str(i) for i in range(len(names))]


def check_labels(labels: Labels, num_classes: int, class_names: Sequence[str] = ()) -> Tensor:
    """Convert labels to int64 (N,) on the CPU; raise if any is invalid.

    >>> check_labels(["dog", 0], 2, ["cat", "dog"]).tolist()
    [1, 0]
    """
    given = labels
    if isinstance(labels, Sequence) and not isinstance(labels, str) and any(isinstance(each, str) for each in labels):
        given = [label_of(each, num_classes, class_names) for each in labels]
    try:
        checked = torch.as_tensor(given)
        whole = not (checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool)
        checked = checked.to("cpu", torch.int64) if whole and checked.layout == torch.strided else torch.empty(0)
    except (TypeError, ValueError, RuntimeError):  # NotImplementedError, of tensors on the meta device, is one
        checked = torch.empty(0)
    if checked.ndim != 1 or not len(checked):
        raise InputError(f"Expected a list of one or more labels, indices or names, such as [0]; got {labels!r}.")
    invalid = checked[(checked < 0) | (checked > num_classes)]
    if len(invalid):
        known = f"labels from 0 to {num_classes - 1}, or {num_classes} for no class"
        only = "label 0 only: this model is unconditional"
        raise InputError(f"Expected {known if num_classes else only}; got {invalid[0].item()}.")
    return checked


def number_classes(labels: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Integers (N,) -> labels, counted from 0 without gaps, and the integers as class names; negative ones stay."""
    numbers = labels[labels >= 0].unique()
    return torch.where(labels < 0, labels, torch.searchsorted(numbers, labels)), tuple(map(str, numbers.tolist()))


def match_classes(labels: Tensor, names: Sequence[str], wanted: Sequence[str], origin: str, *, repair: str) -> Tensor:
    """Labels (N,) of classes by these names -> those of the wanted names."""
    table = torch.tensor([wanted.index(name) if name in wanted else -1 for name in names])
    found = table[labels]
    if unknown := [names[i] for i in labels[found < 0].unique().tolist()]:
        raise InputError(
            f"Expected the classes of the training images in the test split of {origin!r}; got {some(unknown)}. "
            f"{repair}"
        )
    return found


def note_classes(labels: Tensor, names: tuple[str, ...], origin: str) -> None:
    """Say which classes have no images, and if integer labels were numbered anew."""
    counts = labels.bincount(minlength=len(names)).tolist()
    if empty := [name for name, count in zip(names, counts, strict=False) if not count]:
        say_once(f"Note: {len(empty)} of {counted(len(names), 'class')} of {origin!r} have no images: {some(empty)}.")
    if all(map(str.isdigit, names)) and names != tuple(map(str, range(len(names)))):
        say_once(
            f"Note: the classes of {origin!r} are named by their labels, {names[0]} to {names[-1]}, "
            f"and counted from 0 to {len(names) - 1}."
        )
