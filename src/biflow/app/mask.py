"""The region of an image to inpaint: painted, or chosen by name."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from biflow.errors import choose

COVERED = 64  # of 255: coverage from which a pixel counts as painted

HALVES: Mapping[str, tuple[int, float]] = {  # axis, and where along it the half begins
    "upper half": (0, 0.0),
    "lower half": (0, 0.5),
    "left half": (1, 0.0),
    "right half": (1, 0.5),
}
PAINTED, EVERYTHING = "painted area", "whole image"


def mask_of(part: str, layers: Sequence[np.ndarray], side: int) -> Tensor:
    """The mask, bool (side, side): a region by its name, or where RGBA layers are painted.

    >>> mask_of("left half", [], 2)
    tensor([[ True, False],
            [ True, False]])
    """
    if part == EVERYTHING:
        return torch.ones(side, side, dtype=torch.bool)
    if part != PAINTED:
        axis, start = choose(HALVES, part, "part")
        positions = torch.arange(side).expand(side, side)
        half = (positions >= side // 2) == (start > 0)
        return half if axis else half.T
    mask = torch.zeros(side, side, dtype=torch.bool)
    for layer in layers:
        cover = Image.fromarray(layer[..., 3]).resize((side, side), Image.Resampling.BOX)
        mask |= torch.from_numpy(np.array(cover)) >= COVERED
    return mask
