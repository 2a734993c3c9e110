"""Make two folders of images with some in them that do not belong, for `biflow score` to find.

    python examples/out_of_place.py runs/out_of_place
    biflow score runs/quickstart/model runs/out_of_place/digits
    biflow score runs/quickstart/model runs/out_of_place/sevens --label 7 --contrast --show 8

OUT/digits holds 340 of the test digits and four each of five kinds of images that are no digits; OUT/sevens the test
digits of class 7 and four of other classes.  The names of the intruders say what they are.
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

INTRUDERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "negative": lambda images: 255 - images,
    "blurred": lambda images: F.avg_pool2d(images.float(), 3, stride=1, padding=1).round().to(torch.uint8),
    "mirrored": lambda images: images.flip(3),
    "blank": torch.zeros_like,
    "noise": lambda images: torch.from_numpy(stream("noise").integers(0, 256, tuple(images.shape), "uint8")),
}
"""Kinds of images that are no digits: each a function of digits, uint8 (N, 1, 8, 8)."""


def write_folder(folder: Path, images: Mapping[str, Tensor]) -> None:
    """One PNG an image."""
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
    for place, (kind, change) in enumerate(INTRUDERS.items()):
        source = test.images[340 + 4 * place : 344 + 4 * place]
        digits |= {f"{kind}_{i}": image for i, image in enumerate(change(source))}
    write_folder(out / "digits", digits)
    sevens = {f"seven_{i:02d}": image for i, image in enumerate(test.images[test.labels == 7])}
    sevens |= {f"not_a_seven_but_{c}": test.images[test.labels == c][0] for c in (1, 2, 4, 9)}
    write_folder(out / "sevens", sevens)


if __name__ == "__main__":
    main()
