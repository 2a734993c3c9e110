"""Write images as ADM sample files, grids or folders of PNGs; convert between PIL images and tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from biflow.data.npz import write_npz
from biflow.errors import InputError
from biflow.files import check_file_output, check_new_folder, replace_file, replace_folder

Images = Sequence[Image.Image] | Tensor
"""PIL images of one size, grey or RGB, or uint8 (N, P, H, W)."""

GRID_GAP = 1  # pixels between the images of a grid
GRID_WIDTH = 512  # narrower grids are enlarged


def check_image_output(path: Path) -> None:
    """Raise unless `write_images` can write to this path: .npz, .png, or a new or empty folder."""
    if path.suffix not in {"", ".npz", ".png"}:
        raise InputError(f"Expected an output ending in .npz or .png, or a folder; got {path}.")
    if path.suffix:
        check_file_output(path)
    else:
        check_new_folder(path)


def write_images(path: Path, pixels: Tensor, labels: Tensor) -> None:
    """Write uint8 images (N, P, H, W) with labels (N,): .npz in the ADM format, .png as one grid, else a PNG folder."""
    check_image_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        write_npz(path, pixels, labels)
    elif path.suffix == ".png":
        write_picture(path, enlarge(make_grid(pixels)))
    else:
        digits = len(str(len(pixels) - 1))
        with replace_folder(path) as folder:
            for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
                to_pil(image).save(folder / f"{i:0{digits}d}_class{label}.png")


def write_picture(path: Path, picture: Tensor | Image.Image) -> None:
    """Write one image, uint8 (P, H, W) or PIL, as PNG, atomically."""
    image = to_pil(picture) if isinstance(picture, Tensor) else picture
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        image.save(temporary, format="PNG")


def make_grid(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Arrange uint8 images (N, P, H, W) row by row in one image (P, H', W'), nearly square by default."""
    count, channels, height, width = pixels.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    padded = torch.zeros(rows * columns, channels, height + GRID_GAP, width + GRID_GAP, dtype=torch.uint8)
    padded[:count, :, :height, :width] = pixels
    grid = padded.view(rows, columns, channels, height + GRID_GAP, width + GRID_GAP)
    picture = grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + GRID_GAP), -1)
    return picture[:, :-GRID_GAP, :-GRID_GAP]


def enlarge(image: Tensor, least: int = GRID_WIDTH) -> Tensor:
    """Enlarge an image, uint8 (P, H, W), by an integer factor to a width of at least `least`."""
    times = max(1, -(-least // image.shape[-1]))
    return image.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def to_pil(image: Tensor) -> Image.Image:
    """Convert uint8 (P, H, W) with one or three channels to a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def to_pixels(images: Images) -> Tensor:
    """Convert PIL images of one size, grey or RGB, to uint8 (N, P, H, W); tensors of that shape are returned as is."""
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.dtype != torch.uint8 or images.layout != torch.strided or images.is_meta:
            raise InputError(f"Expected uint8 images (N, P, H, W); got {tuple(images.shape)} {images.dtype}.")
        return images
    if not isinstance(images, Sequence) or not len(images) or not all(isinstance(each, Image.Image) for each in images):
        what = "an empty list" if isinstance(images, list) and not images else f"a {type(images).__name__}"
        raise InputError(f"Expected one or more PIL images in a list, or a uint8 tensor (N, P, H, W); got {what}.")
    kinds = {(image.mode, image.size) for image in images}
    if len(kinds) != 1 or not kinds <= {(mode, size) for _, size in kinds for mode in ("L", "RGB")}:
        raise InputError(
            f"Expected images of one size, all grey or all RGB; got {len(images)} of {len(kinds)} kinds "
            f"({', '.join(f'{mode} {size[0]}x{size[1]}' for mode, size in sorted(kinds)[:3])}). Convert them alike."
        )
    arrays = np.stack([np.array(image).reshape(image.height, image.width, -1) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)
