"""Write two folders of images that contain outliers, for `biflow score` to find.

    python examples/outliers.py runs/outliers
    biflow score runs/quickstart/model runs/outliers/digits
    biflow score runs/quickstart/model runs/outliers/sevens --label 7 --contrast --show 8

OUT/digits holds 340 test digits and 20 outliers, four of each of five kinds.  OUT/sevens holds the test digits of class
7 and four digits of other classes.  The file names say which images are outliers.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from biflow.data.datasets import load_data
from biflow.data.images import to_pil
from biflow.data.randomness import stream

OUTLIERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "negative": lambda images: 255 - images,
    "blurred": lambda images: F.avg_pool2d(images.float(), 3, stride=1, padding=1).round().to(torch.uint8),
    "mirrored": lambda images: images.flip(3),
    "blank": torch.zeros_like,
    "noise": lambda images: torch.from_numpy(stream("noise").integers(0, 256, tuple(images.shape), "uint8")),
}
"""Kinds of outliers, each made from digits, uint8 (N, 1, 8, 8)."""


def write_folder(folder: Path, images: Mapping[str, Tensor]) -> None:
    """Write one PNG per image."""
    folder.mkdir(parents=True)
    for name, image in images.items():
        to_pil(image).save(folder / f"{name}.png")


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    out = parser.parse_args().out
    test = load_data("digits").test
    digits = {f"digit_{i:03d}": image for i, image in enumerate(test.images[:340])}
    for index, (kind, change) in enumerate(OUTLIERS.items()):
        source = test.images[340 + 4 * index : 344 + 4 * index]
        digits |= {f"{kind}_{i}": image for i, image in enumerate(change(source))}
    write_folder(out / "digits", digits)
    sevens = {f"seven_{i:02d}": image for i, image in enumerate(test.images[test.labels == 7])}
    sevens |= {f"not_a_seven_but_{c}": test.images[test.labels == c][0] for c in (1, 2, 4, 9)}
    write_folder(out / "sevens", sevens)


if __name__ == "__main__":
    main()
