"""Train on a folder of images from Python: the flow, then its learned inverse.

    python examples/train_on_a_folder.py runs/photos/digits runs/mine

FOLDER has a sub-folder for each class.  It does what `biflow train` does, with the settings at hand as an object: here
every image is read at the recipe's own size, and a tenth of each class is held out.
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
    """The recipe with this folder as its data, and as many classes as the folder has."""
    classes = sum(1 for path in folder.iterdir() if path.is_dir())
    own = [f"data=folder:{folder}", f"model.num_classes={classes}", "reading.test_share=0.1"]
    return load_recipe(recipe, [*own, *overrides])


def train(config: RunConfig, out: Path, *, resume: bool = False) -> Pipeline:
    """Train what the settings describe in a run folder; the model, which is not saved yet."""
    data = open_data(config.data, make_codec(config.model.codec).image_shape(config.model), config.reading)
    with open_run(config, data.train, out, resume=resume, console=Console()) as run:
        return Pipeline(train_model(run).model)


def main(arguments: list[str] | None = None) -> None:
    """Train, and save a model folder in OUT/model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of images, a sub-folder for each class")
    parser.add_argument("out", type=Path, help="the run folder")
    parser.add_argument("--recipe", default="biflow_digits", help="a name, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of biflow train")
    options = parser.parse_args(arguments)
    pipe = train(settings(options.folder, options.recipe, *options.set), options.out)
    pipe.save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
