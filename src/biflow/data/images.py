"""Sets of images on disk: the ADM sample file, a grid, a folder of PNGs."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from biflow.errors import InputError
from biflow.files import check_writable, replace_file, replace_folder

GRID_GAP = 1  # pixels between the images of a grid
GRID_WIDTH = 512  # a grid that is narrower is enlarged


def check_image_output(path: Path) -> None:
    """Raise unless `write_images` can write to this path: .npz, .png, or a folder that is new or empty."""
    check_writable(path.parent)
    if path.suffix not in {"", ".npz", ".png"}:
        raise InputError(f"Expected an output ending in .npz or .png, or a folder; got {path}.")
    if path.suffix == "" and path.is_dir() and any(path.iterdir()):
        raise InputError(f"Expected a new or empty folder for the images; {path} has files. Choose another.")
    if path.suffix == "" and path.is_file():
        raise InputError(f"Expected a folder for the images; {path} is a file. Choose another name, or end it in .png.")
    if path.suffix and path.is_dir():
        raise InputError(f"Expected a file to write; {path} is a folder. Choose another name.")


def write_images(path: Path, pixels: Tensor, labels: Tensor) -> None:
    """Write uint8 images (N, P, H, W): .npz in the ADM format, .png as one grid, else a folder of PNGs."""
    check_image_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        write_npz(path, pixels, labels)
    elif path.suffix == ".png":
        with replace_file(path) as temporary:
            to_pil(enlarge(make_grid(pixels))).save(temporary, format="PNG")
    else:
        digits = len(str(len(pixels) - 1))
        with replace_folder(path) as folder:
            for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
                to_pil(image).save(folder / f"{i:0{digits}d}_class{label}.png")


def write_npz(path: Path, pixels: Tensor, labels: Tensor) -> None:
    """The ADM evaluator's format: arr_0 uint8 (N, H, W, P), arr_1 int64 (N,)."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, pixels.permute(0, 2, 3, 1).numpy(), labels.numpy())


def make_grid(pixels: Tensor, columns: int | None = None) -> Tensor:
    """uint8 images (N, P, H, W) -> one picture (P, H', W'), row by row, nearly square unless told."""
    count, channels, height, width = pixels.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    padded = torch.zeros(rows * columns, channels, height + GRID_GAP, width + GRID_GAP, dtype=torch.uint8)
    padded[:count, :, :height, :width] = pixels
    grid = padded.view(rows, columns, channels, height + GRID_GAP, width + GRID_GAP)
    picture = grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + GRID_GAP), -1)
    return picture[:, :-GRID_GAP, :-GRID_GAP]


def enlarge(image: Tensor, least: int = GRID_WIDTH) -> Tensor:
    """uint8 (P, H, W), every pixel repeated so often that the width reaches `least`; a larger image stays as it is."""
    times = max(1, -(-least // image.shape[-1]))
    return image.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (P, H, W) with one or three channels -> a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
