"""What samples are compared with: networks, and what real images are to them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from biflow.config import ReadingConfig, SplitName, load_recipe
from biflow.console import counting
from biflow.data.datasets import ImageSet, ImageSource, Split
from biflow.distributed import World
from biflow.errors import InputError
from biflow.evaluation.reference import (
    Reference,
    check_facts,
    join_parts,
    load_adm_reference,
    load_reference,
    measure_part,
    save_reference,
    spread_places,
)
from biflow.features.judge import save_judge
from biflow.features.metric_networks import FeatureNet, make_feature_net
from biflow.models.codec import PixelCodec
from biflow.training.hooks import ProgressBoard
from biflow.training.stages import CLASSIFIER_FIT, Run, fit_judge

LEAST_IMAGES = 4  # that have three neighbours, as precision and recall need
JUDGE_IMAGES = 20_000  # at most, that a judge is trained on


class Site(NamedTuple):
    """Where measuring is done: a folder for what is made, and the processes that share the work."""

    out: Path
    world: World
    console: Console
    batch_size: int


class Compared(NamedTuple):
    """A network, and what it makes of the real images."""

    net: FeatureNet
    reference: Reference


class Reals(NamedTuple):
    """The real images that samples are compared with, and how they are read."""

    name: str
    data: Split[ImageSource]
    split: SplitName
    reading: ReadingConfig

    @property
    def images(self) -> ImageSource:
        """Those of the split."""
        return self.data.test if self.split == "test" else self.data.train

    def facts(self, net: FeatureNet) -> dict[str, Any]:
        """All that a network's statistics of them depend on."""
        return {
            "network": net.name,
            "weights": net.identity(),
            "preprocessing": net.preprocessing,
            "data": self.name,
            "split": self.split,
            "images": len(self.images),
            "image_shape": list(self.images.image_shape),
            "crop": self.reading.crop,
            "background": self.reading.background,
            "test_share": self.reading.test_share,
        }


def lay_ground(names: Sequence[str], files: Sequence[Path], reals: Reals, site: Site) -> dict[str, Compared]:
    """The networks of these names, each with its statistics of the real images, by the networks' own names.

    files: statistics, one for each network, that are read if they are there and else written; without any they are
    kept at the site.  "judge" alone is one that is trained here, on the training images.
    """
    if files and len(files) != len(names):
        raise InputError(f"Expected one of references for each of {len(names)} --features; got {len(files)}.")
    if len(reals.images) < LEAST_IMAGES:
        raise InputError(
            f"Expected {LEAST_IMAGES} images or more in the {reals.split} split of {reals.name!r}; it has "
            f"{len(reals.images)}. Set another split, or give other --data."
        )
    nets = [_open_net(name, reals, site) for name in names]
    grounds = {}
    for place, net in enumerate(nets):
        file = files[place] if files else site.out / "reference" / f"{net.name}.safetensors"
        reference = take_reference(net, file, reals, site)
        grounds[net.name] = Compared(net, reference)
    return grounds


def take_reference(net: FeatureNet, file: Path, reals: Reals, site: Site) -> Reference:
    """A network's statistics of the real images: from this file, which is made if it is not there."""
    facts, world = reals.facts(net), site.world
    if file.suffix == ".npz":
        return load_adm_reference(file, net, reals.images.image_shape, batch_size=site.batch_size)
    if file.suffix != ".safetensors":
        raise InputError(f"Expected statistics in a .safetensors file, or the ADM evaluator's .npz; got {file}.")
    if file.exists():
        reference = load_reference(file)
        check_facts(reference, facts, file)
        return reference
    share = -(-len(reals.images) // world.size)
    with counting(site.console, f"real images through {net.name}", share, shown=world.is_main) as progress:
        part = measure_part(
            net, reals.images, rank=world.rank, size=world.size, batch_size=site.batch_size, progress=progress
        )
    reference = join_parts(world.gather(part), facts)
    world.on_main(lambda: save_reference(reference, file))
    return reference


def _open_net(name: str, reals: Reals, site: Site) -> FeatureNet:
    if name == "judge":
        folder = site.out / "judge"
        if not folder.exists():
            train_judge(folder, reals.data.train, site.world, site.console)
        name = f"judge:{folder}"
    return make_feature_net(name).to(site.world.device)


def train_judge(folder: Path, data: ImageSource, world: World, console: Console) -> None:
    """Train a small network to tell the classes of real images apart, and save it."""
    channels, side, _ = data.image_shape
    if not data.class_names:
        raise InputError("Expected classes to train a judge on; the data have none. Give other --features.")
    sizes = {"channels": channels, "image_size": side, "patch_size": 1, "num_classes": len(data.class_names)}
    config = load_recipe("biflow_digits", [f"model.{key}={value}" for key, value in sizes.items()])
    places = spread_places(len(data), JUDGE_IMAGES)
    images = ImageSet(data.read(places), data.labels[places], data.class_names)
    with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:
        run = Run(
            config,
            images,
            PixelCodec(),
            world,
            folder.with_name(f"{folder.name}_states"),
            lambda stage, trainer: [board.stage(stage, trainer)],
        )
        judge, _ = fit_judge(run, CLASSIFIER_FIT)

    def keep() -> None:
        save_judge(judge.cpu(), folder)
        shutil.rmtree(run.states)

    world.on_main(keep)
