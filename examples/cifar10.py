"""Pack CIFAR-10 (Krizhevsky 2009) as .npz files with the names of its classes.

    python examples/cifar10.py cifar-10-batches-bin data/cifar10      # the binary version, as its author publishes it
    python examples/cifar10.py images data/cifar10                    # or images in train/CLASS and test/CLASS
    biflow train small_32 --out runs/cifar --set data=npz:data/cifar10      # sized for two CPU cores
    biflow train cifar10 --out runs/cifar10                                 # sized for one GPU

Images in folders train as they are too, with data=folder:images; packed files load at once, without decoding.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from biflow.config import ReadingConfig
from biflow.data.datasets import ImageSet, ImageSource, Split
from biflow.data.npz import write_npz
from biflow.data.open import open_images

SHAPE = (3, 32, 32)
NAMES = "batches.meta.txt"  # of the binary version: class names, one per line
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def read_binary(folder: Path) -> Split[ImageSet]:
    """Read the binary version: per image one byte of label, then 32x32 bytes of red, of green and of blue."""
    names = tuple((folder / NAMES).read_text().split())
    parts = {}
    for part, files in BATCHES.items():
        rows = np.concatenate([np.fromfile(folder / file, np.uint8) for file in files]).reshape(-1, 1 + 3 * 32 * 32)
        images = torch.from_numpy(rows[:, 1:].reshape(-1, *SHAPE).copy())
        parts[part] = ImageSet(images, torch.from_numpy(rows[:, 0].astype(np.int64)), names)
    return Split(parts["train"], parts["test"])


def main(arguments: list[str] | None = None) -> None:
    """Write train.npz and test.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the binary version, or of images in train/ and test/")
    parser.add_argument("out", type=Path, help="folder for train.npz and test.npz")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found: Split[ImageSource]
    if (options.source / NAMES).is_file():
        found = read_binary(options.source)
    else:
        found = open_images(f"folder:{options.source}", SHAPE, ReadingConfig())
    for name, part in (("train", found.train), ("test", found.test)):
        if not len(part):
            continue
        images = part.read(torch.arange(len(part)))
        write_npz(options.out / f"{name}.npz", images, part.labels, part.class_names)
        print(f"{len(part):,} images in {options.out / name}.npz")


if __name__ == "__main__":
    main()
