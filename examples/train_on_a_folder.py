"""Train a flow and its reverse model on a folder of images, from Python.

    python examples/train_on_a_folder.py runs/photos/digits runs/mine

FOLDER has one subfolder per class.  The script does the same as `biflow train`, with the settings as a Python object:
images are resized to the recipe's image size, and a tenth of each class is held out.
"""

import argparse
from pathlib import Path

from rich.console import Console

from biflow import Pipeline, RunConfig, load_recipe
from biflow.data.open import open_data
from biflow.models.codec import make_codec
from biflow.training.run import open_run
from biflow.training.stages import train_model


def settings(folder: Path, recipe: str, *overrides: str) -> RunConfig:
    """The recipe's settings, with this folder as the data set and its number of classes."""
    classes = sum(1 for path in folder.iterdir() if path.is_dir())
    own = [f"data=folder:{folder}", f"model.num_classes={classes}", "reading.test_share=0.1"]
    return load_recipe(recipe, [*own, *overrides])


def train(config: RunConfig, out: Path, *, resume: bool = False) -> Pipeline:
    """Train in the run folder `out` and return the model, which is not saved yet."""
    data = open_data(config.data, make_codec(config.model.codec).image_shape(config.model), config.reading)
    with open_run(config, data.train, out, resume=resume, console=Console()) as run:
        return Pipeline(train_model(run).model)


def main(arguments: list[str] | None = None) -> None:
    """Train, and save a model folder in OUT/model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="image folder with one subfolder per class")
    parser.add_argument("out", type=Path, help="the run folder")
    parser.add_argument("--recipe", default="biflow_digits", help="recipe name or YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in biflow train")
    options = parser.parse_args(arguments)
    pipe = train(settings(options.folder, options.recipe, *options.set), options.out)
    pipe.save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
