"""Feature networks and the reference statistics of the real images."""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from biflow.config import load_recipe
from biflow.config.evaluation import EvaluationConfig
from biflow.config.records import reading_of
from biflow.config.run import PictureReading
from biflow.console import counting
from biflow.data.datasets import ImageSet, ImageSource, Split, digest
from biflow.data.open import canonical_name
from biflow.distributed import World
from biflow.errors import InputError
from biflow.evaluation.reference import (
    Reference,
    describe_difference,
    evenly_spaced,
    join_parts,
    load_adm_reference,
    load_reference,
    measure_part,
    save_reference,
)
from biflow.features.judge import read_judge_record, save_judge
from biflow.features.metric_networks import FeatureNet, make_feature_net
from biflow.features.pretrained import note_grey
from biflow.files import hold_folder
from biflow.models.codec import PixelCodec
from biflow.training.hooks import ProgressBoard
from biflow.training.stages import CLASSIFIER_FIT, Run, fit_judge

LEAST_IMAGES = 4  # precision and recall need three neighbours
PICTURE = tuple(PictureReading.model_fields)  # settings that change an image
READING = (*PICTURE, "test_share")  # and which images there are
OF_DATA = (*READING, "rejected_share", "image_column", "label_column")  # and that hold for one data set alone
JUDGE_IMAGES = 20_000  # at most; training images of the reference classifier


class EvaluationContext(NamedTuple):
    """The settings and output folder of an evaluation, and the processes that share the work."""

    config: EvaluationConfig
    out: Path
    world: World
    console: Console
    held: ExitStack

    def hold(self) -> None:
        """Hold the output folder, against other processes, until the evaluation ends."""
        self.world.on_main(lambda: self.held.enter_context(hold_folder(self.out)))

    def note(self, text: str) -> None:
        """Print a line, in the main process alone."""
        if self.world.is_main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


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
        network = {"network": net.name, "weights": net.identity(), "preprocessing": net.preprocessing}
        return {**network, "split": self.config.split, **self.facts_of(self.images)}

    def facts_of(self, images: ImageSource) -> dict[str, Any]:
        """What identifies images, and how they are read."""
        reading = {key: getattr(self.config.reading, key) for key in READING}
        shape = list(images.image_shape)
        return {"images": len(images), "image_shape": shape, **reading, "fingerprint": images.fingerprint()}


def read_as_trained(context: EvaluationContext, training: Mapping[str, Any] | None) -> EvaluationContext:
    """The context, its images read as in the model's training wherever nothing else is set, which a note says.

    Raises if the training data themselves would be read otherwise.
    """
    config, own, known = context.config, reading_of(training), training or {}
    name, trained_on = canonical_name(config.data), known.get("config", {}).get("data") or ""
    same = known.get("data_digest") == digest(name) or canonical_name(trained_on) == name
    given = config.reading.model_fields_set
    for key in READING:
        was, now = getattr(own, key), getattr(config.reading, key)
        if same and key in given and was != now:
            raise InputError(
                f"Expected reading.{key}={was}, with which the model was trained on {config.data!r}; got {now}. "
                f"Leave it out, or set reading.{key}={was}."
            )
    free = {key: getattr(own, key) for key in (OF_DATA if same else PICTURE) if key not in given}
    changed = {key: value for key, value in free.items() if value != getattr(config.reading, key)}
    if changed:
        settings = ", ".join(f"reading.{key}={value}" for key, value in changed.items())
        context.note(f"Real images are read with {settings}, as in the training of the model.")
    reading = config.reading.model_copy(update=changed)
    return context._replace(config=config.model_copy(update={"reading": reading}))


def open_references(reals: RealImages, context: EvaluationContext) -> dict[str, NetworkReference]:
    """Network name -> the network and its statistics of the real images, for `--features` and `references`.

    Each file of statistics is read if it exists and written otherwise; by default in the output folder, where one of
    other images is written anew.  "judge" without a folder trains a reference classifier on the training images.
    """
    context.hold()
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
        difference = describe_difference(reference, facts)
        if not difference:
            return reference
        if context.config.references:
            raise InputError(
                f"Expected statistics with {difference}, in {file}. Set other references, or delete the file to "
                "compute them again."
            )
        context.note(f"Computing {file} anew: expected statistics with {difference}.")
    share = -(-len(reals.images) // world.size)
    with counting(context.console, f"real images through {net.name}", share, shown=world.is_main) as progress:
        part = measure_part(
            net, reals.images, rank=world.rank, size=world.size, batch_size=batch_size, progress=progress
        )
    reference = join_parts(world.gather(part), {**facts, "data": context.config.data})
    world.on_main(lambda: save_reference(reference, file))
    return reference


def _open_net(name: str, reals: RealImages, context: EvaluationContext) -> FeatureNet:
    if name == "judge":
        folder, facts = context.out / "judge", reals.facts_of(reals.data.train)
        trained_on = read_judge_record(folder).trained_on if folder.exists() else None
        if trained_on != facts:
            if trained_on is not None:
                context.note(f"Training {folder} anew: it was trained on other images, or they have changed.")
            train_judge(folder, reals.data.train, facts, context)
        name = f"judge:{folder}"
    net = make_feature_net(name)
    if net.channels > 1:
        note_grey(f"the feature network {net.name!r}", reals.images.image_shape[0])
    return net.to(context.world.device)


def train_judge(folder: Path, data: ImageSource, facts: Mapping[str, Any], context: EvaluationContext) -> None:
    """Train the reference classifier on real images, which the facts identify, and save it."""
    world, (channels, side, _) = context.world, data.image_shape
    if not data.class_names:
        raise InputError(
            "Expected classes to train the reference classifier (judge) on; got data without. Give other --features."
        )
    sizes = {"channels": channels, "image_size": side, "patch_size": 1, "num_classes": len(data.class_names)}
    config = load_recipe("biflow_digits", [f"model.{key}={value}" for key, value in sizes.items()])
    indices = evenly_spaced(len(data), JUDGE_IMAGES)
    images = ImageSet(data.read(indices), data.labels[indices], data.class_names)
    states = folder.with_name(f"{folder.name}_states_{digest(json.dumps(facts, sort_keys=True))[:8]}")
    with ProgressBoard(context.console if world.is_main else Console(quiet=True)) as board:
        run = Run(config, images, PixelCodec(), world, states, lambda *of: [board.stage(*of)])
        judge, _ = fit_judge(run, CLASSIFIER_FIT)
    world.on_main(lambda: save_judge(judge.cpu(), folder, trained_on=facts))
    world.on_main(lambda: remove_folders(folder.parent.glob(f"{folder.name}_states_*")))


def remove_folders(folders: Iterable[Path]) -> None:
    """Delete folders and what is in them."""
    for folder in folders:
        shutil.rmtree(folder)
