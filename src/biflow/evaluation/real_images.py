"""Feature networks and the reference statistics of the real images."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from biflow.config import load_recipe
from biflow.config.evaluation import EvaluationConfig
from biflow.console import counting
from biflow.data.datasets import ImageSet, ImageSource, Split
from biflow.distributed import World
from biflow.errors import InputError
from biflow.evaluation.reference import (
    Reference,
    check_facts,
    evenly_spaced,
    join_parts,
    load_adm_reference,
    load_reference,
    measure_part,
    save_reference,
)
from biflow.features.judge import save_judge
from biflow.features.metric_networks import FeatureNet, make_feature_net
from biflow.models.codec import PixelCodec
from biflow.training.hooks import ProgressBoard
from biflow.training.stages import CLASSIFIER_FIT, Run, fit_judge

LEAST_IMAGES = 4  # precision and recall need three neighbours
READING = ("crop", "background", "test_share")  # settings that change the images
JUDGE_IMAGES = 20_000  # at most; training images of the reference classifier


class EvaluationContext(NamedTuple):
    """The settings and output folder of an evaluation, and the processes that share the work."""

    config: EvaluationConfig
    out: Path
    world: World
    console: Console


class NetworkReference(NamedTuple):
    """A feature network, and its statistics of the real images."""

    net: FeatureNet
    reference: Reference


class RealImages(NamedTuple):
    """The real images that samples are compared with, and the settings that say which and how they are read."""

    config: EvaluationConfig
    data: Split[ImageSource]

    @property
    def images(self) -> ImageSource:
        """The images of the split."""
        return self.data.test if self.config.split == "test" else self.data.train

    def facts(self, net: FeatureNet) -> dict[str, Any]:
        """Everything that a network's statistics of the images depend on."""
        return {
            "network": net.name,
            "weights": net.identity(),
            "preprocessing": net.preprocessing,
            "data": self.config.data,
            "split": self.config.split,
            "images": len(self.images),
            "image_shape": list(self.images.image_shape),
            **{key: getattr(self.config.reading, key) for key in READING},
        }


def open_references(reals: RealImages, context: EvaluationContext) -> dict[str, NetworkReference]:
    """Network name -> the network and its statistics of the real images, for `--features` and `references`.

    Each file of statistics is read if it exists and written otherwise; by default in the output folder.  "judge"
    without a folder trains a reference classifier on the training images.
    """
    config = context.config
    names, files = config.features, [Path(file) for file in config.references]
    if files and len(files) != len(names):
        raise InputError(
            f"Expected one of references for each of {len(names)} --features; got {len(files)}. Set as many."
        )
    if len(reals.images) < LEAST_IMAGES:
        split = f"{config.split} split of {config.data!r}"
        raise InputError(f"Expected {LEAST_IMAGES} or more images in the {split}; got {len(reals.images)}. Set split.")
    nets = [_open_net(name, reals, context) for name in names]
    files = files or [context.out / "reference" / f"{net.name}.safetensors" for net in nets]
    references = (open_reference(net, file, reals, context) for net, file in zip(nets, files, strict=True))
    return {net.name: NetworkReference(net, reference) for net, reference in zip(nets, references, strict=True)}


def open_reference(net: FeatureNet, file: Path, reals: RealImages, context: EvaluationContext) -> Reference:
    """A network's statistics of the real images, read from this file or computed and written to it."""
    facts, world, batch_size = reals.facts(net), context.world, context.config.batch_size
    if file.suffix == ".npz":
        return load_adm_reference(file, net, reals.images.image_shape, batch_size=batch_size)
    if file.suffix != ".safetensors":
        raise InputError(f"Expected statistics in a .safetensors file, or the ADM evaluator's .npz; got {file}.")
    if file.exists():
        reference = load_reference(file)
        check_facts(reference, facts, file)
        return reference
    share = -(-len(reals.images) // world.size)
    with counting(context.console, f"real images through {net.name}", share, shown=world.is_main) as progress:
        part = measure_part(
            net, reals.images, rank=world.rank, size=world.size, batch_size=batch_size, progress=progress
        )
    reference = join_parts(world.gather(part), facts)
    world.on_main(lambda: save_reference(reference, file))
    return reference


def _open_net(name: str, reals: RealImages, context: EvaluationContext) -> FeatureNet:
    if name == "judge":
        folder = context.out / "judge"
        if not folder.exists():
            train_judge(folder, reals.data.train, context.world, context.console)
        name = f"judge:{folder}"
    return make_feature_net(name).to(context.world.device)


def train_judge(folder: Path, data: ImageSource, world: World, console: Console) -> None:
    """Train the reference classifier on real images, and save it."""
    channels, side, _ = data.image_shape
    if not data.class_names:
        raise InputError(
            "Expected classes to train the reference classifier (judge) on; got data without. Give other --features."
        )
    sizes = {"channels": channels, "image_size": side, "patch_size": 1, "num_classes": len(data.class_names)}
    config = load_recipe("biflow_digits", [f"model.{key}={value}" for key, value in sizes.items()])
    indices = evenly_spaced(len(data), JUDGE_IMAGES)
    images = ImageSet(data.read(indices), data.labels[indices], data.class_names)
    with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:
        states = folder.with_name(f"{folder.name}_states")
        run = Run(config, images, PixelCodec(), world, states, lambda *of: [board.stage(*of)])
        judge, _ = fit_judge(run, CLASSIFIER_FIT)
    world.on_main(lambda: save_judge(judge.cpu(), folder))
    world.on_main(lambda: shutil.rmtree(states))
