"""Classify the images of a folder and rank them by likelihood, the least likely first.

    python examples/classify_and_rank.py runs/mine/model runs/photos/new

Both use only the flow's likelihood: classes by Bayes' rule over every class, and likelihoods in bits per dimension.  No
classifier is needed.
"""

import argparse
from pathlib import Path

from biflow import Pipeline
from biflow.data.pictures import read_pictures


def main(arguments: list[str] | None = None) -> None:
    """Print one line per image."""
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
