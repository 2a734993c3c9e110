"""Write scikit-learn's digits as PNG files for docs/tutorial.md: a folder with classes, and a folder of new images.

    python examples/make_folder.py runs/photos

OUT/digits has one subfolder per class, 0 to 9, with the 1,437 training images of the quickstart.  OUT/new has the first
images of its test set, without subfolders; the file names give the true class.
"""

import argparse
from pathlib import Path

from biflow.data.datasets import ImageSet, load_data
from biflow.data.images import to_pil


def write_classes(folder: Path, data: ImageSet) -> None:
    """Write one PNG per image, in one subfolder per class."""
    for index, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        home = folder / data.class_names[label]
        home.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(home / f"{index:04d}.png")


def write_loose(folder: Path, data: ImageSet, count: int) -> None:
    """Write the first `count` images, without classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(zip(data.images[:count], data.labels.tolist(), strict=False)):
        to_pil(image).save(folder / f"{index:03d}_is_a_{data.class_names[label]}.png")


def main(arguments: list[str] | None = None) -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--new", type=int, default=100, help="images in OUT/new")
    options = parser.parse_args(arguments)
    data = load_data("digits")
    write_classes(options.out / "digits", data.train)
    write_loose(options.out / "new", data.test, options.new)


if __name__ == "__main__":
    main()
