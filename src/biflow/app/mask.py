"""The region of an image to inpaint: painted, or chosen by name."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from biflow.errors import choose

COVERED = 64  # of 255: coverage from which a pixel counts as painted

PAINTED, EVERYTHING = "painted area", "whole image"
HALVES = ("upper half", "lower half", "left half", "right half")


def mask_of(part: str, layers: Sequence[np.ndarray], side: int) -> Tensor:
    """The mask, bool (side, side): a region by its name, or where RGBA layers are painted.

    >>> mask_of("left half", [], 2)
    tensor([[ True, False],
            [ True, False]])
    """
    mask, half = torch.zeros(side, side, dtype=torch.bool), side // 2
    if part == PAINTED:
        for layer in layers:
            cover = Image.fromarray(layer[..., 3]).resize((side, side), Image.Resampling.BOX)
            mask |= torch.from_numpy(np.array(cover)) >= COVERED
        return mask
    halves = dict(zip(HALVES, (mask[:half], mask[half:], mask[:, :half], mask[:, half:]), strict=True))
    choose({**halves, EVERYTHING: mask}, part, "part").fill_(True)
    return mask
