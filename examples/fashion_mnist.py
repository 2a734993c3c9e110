"""Pack Fashion-MNIST (Xiao et al. 2017, MIT licence) as .npz files with the names of its classes.

    apt-get install dataset-fashion-mnist       # Debian; elsewhere, download the four files that its authors publish
    python examples/fashion_mnist.py data/fashion_mnist
    biflow data check data/fashion_mnist        # prints a command that trains on it

`data=idx:FOLDER` trains on the downloaded files as they are, with classes called 0 to 9.
"""

import argparse
from pathlib import Path

from biflow.data.arrays import read_idx_sets
from biflow.data.npz import write_npz

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def main(arguments: list[str] | None = None) -> None:
    """Write train.npz and test.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train.npz and test.npz")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of the IDX files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), read_idx_sets(options.source), strict=True):
        assert part.labels is not None
        write_npz(options.out / f"{name}.npz", part.pixels, part.labels, CLASSES)
        print(f"{len(part.pixels):,} images in {options.out / name}.npz")


if __name__ == "__main__":
    main()
