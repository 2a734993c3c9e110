"""Contact sheets: rows of captioned images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from biflow.data.images import enlarge, to_pil, write_picture

GAP, ROW_GAP, MARGIN = 4, 8, 10  # pixels between tiles, between rows, and around the sheet
TILE_WIDTH = 104  # narrower tiles are enlarged
TEXT_SIZE, TEXT_HEIGHT = 13, 20
PAPER, INK, PAINT = "white", "#1c1b22", (180, 68, 31)


class Tile(NamedTuple):
    """An image with a caption."""

    pixels: Tensor  # uint8 (P, H, W)
    caption: str = ""


def painted(pixels: Tensor, mask: Tensor) -> Tensor:
    """Paint over an image (P, H, W) where the mask, bool (1, H, W), is true; returns RGB (3, H, W)."""
    paint = torch.tensor(PAINT, dtype=torch.uint8).view(3, 1, 1)
    return torch.where(mask, paint, pixels.expand(3, -1, -1))


def make_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Arrange rows of equally sized tiles in one image; small tiles are enlarged by an integer factor."""
    side = enlarge(rows[0][0].pixels, TILE_WIDTH).shape
    wide, high = side[2] + GAP, side[1] + TEXT_HEIGHT + ROW_GAP
    size = (max(map(len, rows)) * wide - GAP + 2 * MARGIN, len(rows) * high - ROW_GAP + 2 * MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            left, top = MARGIN + column * wide, MARGIN + row * high
            sheet.paste(to_pil(enlarge(tile.pixels, TILE_WIDTH)), (left, top))
            _write(sheet, tile.caption, (left, top + side[1] + 2), side[2])
    return sheet


def save_sheet(path: Path, rows: Sequence[Sequence[Tile]]) -> None:
    """Write a sheet as PNG, atomically."""
    write_picture(path, make_sheet(rows))


def _write(sheet: Image.Image, text: str, position: tuple[int, int], width: int) -> None:
    """Write a line of text, truncated to this width."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    shown = text
    while pen.textlength(shown, font=font) > width:
        text = text[:-1]
        shown = f"{text.rstrip()}…"
    pen.text(position, shown, fill=INK, font=font)
