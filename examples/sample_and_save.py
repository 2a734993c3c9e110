"""Sample with several samplers from the same noise, and save one row of images for each.

    python examples/sample_and_save.py runs/mine/model runs/samplers

The rows are one pass of the reverse model without and with guidance, then two exact inverses of the flow.  The two
exact rows agree within the tolerance of the Jacobi inverse; compare them with the one-pass rows to see what the reverse
model learned.
"""

import argparse
from pathlib import Path

from PIL import Image

from biflow import Guidance, Jacobi, Pipeline, Sequential

WAYS = {
    "one_pass": ("reverse", Guidance()),
    "one_pass_guided": ("reverse", Guidance(0.25)),
    "sequential": (Sequential(), Guidance(0.5, annealed=True)),
    "jacobi": (Jacobi(tolerance=1e-4), Guidance(0.5, annealed=True)),
}


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """Images of the same size in a row."""
    width, height = images[0].size
    row = Image.new(images[0].mode, (width * len(images), height))
    for index, image in enumerate(images):
        row.paste(image, (index * width, 0))
    return row


def main(arguments: list[str] | None = None) -> None:
    """Write one PNG per sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pipe = Pipeline.from_pretrained(options.model)
    labels = list(range(max(1, pipe.config.num_classes)))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (method, guidance) in WAYS.items():
        images = pipe.sample(labels, method=method, guidance=guidance, seed=options.seed)
        side_by_side(images).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
