"""Say of each image in a folder which class it is of and how likely it is, the least likely first.

    python examples/classify_and_rank.py runs/mine/model runs/photos/new

Both come from the flow's likelihood alone: the class by Bayes' rule, every class tried, and the bits for each value as
the length of a code.  Nothing but the model folder is needed.
"""

import argparse
from pathlib import Path

from biflow import Pipeline
from biflow.data.images import read_pictures


def main(arguments: list[str] | None = None) -> None:
    """Print one line an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("images", type=Path, help="a folder of images")
    options = parser.parse_args(arguments)
    pipe = Pipeline.from_pretrained(options.model)
    pictures = read_pictures(options.images, pipe.config.image_size, pipe.config.channels)
    found = pipe.classify(pictures.pixels, method="bayes")
    scores = pipe.log_prob(pictures.pixels)
    for i in scores.nats.argsort().tolist():
        name, label = pictures.names[i], int(found.labels[i])
        share, bits = float(found.probabilities[i, label]), float(scores.bits_per_dim[i])
        print(f"{bits:8.3f} bits/dim  {pipe.class_names[label]:>12} ({share:.3f})  {name}")


if __name__ == "__main__":
    main()
