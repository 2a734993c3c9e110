"""The stages of a run: fit the flow, then fit the reverse model to the frozen flow."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.checkpoint import load_model
from biflow.config import FitConfig, ModelConfig, RunConfig
from biflow.config.base import first_difference
from biflow.data.augment import add_noise, draw_guidance, draw_window, drop_labels, flip
from biflow.data.datasets import ImageSet, Source, with_shifts
from biflow.data.latents import LatentSet
from biflow.data.loader import make_reader, some_examples
from biflow.data.randomness import Key, normal_for, seeded_weights
from biflow.distributed import World
from biflow.errors import InputError, Interrupted
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder
from biflow.features.judge import Judge
from biflow.models.codec import Codec, PixelCodec, VaeCodec, training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model, new_model
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.checkpoints import newest, remove_leftovers
from biflow.training.loop import Hook, Objective, Trainer
from biflow.training.objectives import FitClassifier, FitFlow, FitJoint, FitReverse
from biflow.training.reverse_loss import ReverseLoss

CALIBRATION_IMAGES = 4096
CLASSIFIER_FIT = FitConfig(steps=1000, learning_rate=1e-3, ema_decay=0.9, label_drop=0.0)


class Parts(NamedTuple):
    """All networks of a run: the model, and what its losses look through."""

    model: Model
    reverse_loss: ReverseLoss | None
    alignment: Alignment | None
    classifier: Classifier | None  # trained before the model, for distances and alignments that look through it


@dataclass(frozen=True)
class Run:
    """A training run: what to train, on what, and where its state is kept."""

    config: RunConfig
    data: Source
    codec: Codec
    world: World
    states: Path  # a folder; training resumes from the state in it
    listen: Callable[[str, Trainer], Sequence[Hook]]  # (stage, trainer) -> hooks
    should_stop: Callable[[], bool] = lambda: False
    parts: Parts | None = None  # none if only a classifier is trained


class Trained(NamedTuple):
    """The model, and the seconds that each stage took."""

    model: Model
    seconds: dict[str, float]


def prepare(config: RunConfig, data: Source, codec: Codec) -> Parts:
    """Build all networks of a run, once, and check that they fit the data, each other and what is installed."""
    check_data(config, data, codec)
    model = new_model(wanted_model(config), data.class_names, seed=config.seed, codec=codec)
    if config.flow_from:
        model.flow.load_state_dict(load_flow(config, data).state_dict())
    classifier = None
    if needs_classifier(config):
        with seeded_weights(config.seed):
            classifier = Classifier(config.model.channels, config.model.num_classes)
    loss = None
    if config.fit_reverse and model.reverse:
        loss = ReverseLoss(
            config.fit_reverse, config.model, codec=codec, image_shape=data.image_shape, classifier=classifier
        )
    align, alignment = config.fit_flow.align, None
    if align and config.stage != "reverse":
        with seeded_weights(config.seed):
            encoder = make_encoder(align, classifier=classifier)
            alignment = Alignment(align, config.model, encoder, image_shape=data.image_shape)
    return Parts(model, loss, alignment, classifier)


def wanted_model(config: RunConfig) -> ModelConfig:
    """The model that a run trains: without a reverse model if the flow is its only stage."""
    return config.model.model_copy(update={"reverse": None}) if config.stage == "flow" else config.model


def check_data(config: RunConfig, data: Source, codec: Codec) -> None:
    """Raise unless the model is for images and classes like those of the data."""
    if isinstance(data, LatentSet):
        check_latents(config, data, codec)
    model = config.model
    channels, _, image_size = codec.latent_shape(data.image_shape)
    wanted = {"image_size": image_size, "channels": channels, "num_classes": len(data.class_names)}
    faults = {key: value for key, value in wanted.items() if getattr(model, key) != value}
    if faults:
        asked = " and ".join(f"model.{key} to be {value}" for key, value in faults.items())
        what = f"the data set {config.data!r}" if model.codec == "pixels" else f"the codec's latents of {config.data!r}"
        raise InputError(
            f"Expected {asked}, as in {what}; got {' and '.join(str(getattr(model, key)) for key in faults)}. "
            f"Set {' '.join(f'model.{key}={value}' for key, value in faults.items())}."
        )
    if needs_classifier(config) and not model.num_classes:
        raise InputError(
            "Expected classes for the encoder or distance 'classifier', which is trained to tell them apart; this "
            "model is unconditional. Choose another."
        )


def check_latents(config: RunConfig, data: LatentSet, codec: Codec) -> None:
    """Raise unless a cache of latents was made with the model's codec, and nothing needs the images themselves."""
    if not isinstance(codec, VaeCodec):
        made_with = data.manifest["codec"]["name"]
        raise InputError(
            f"Expected a model of latents for {config.data!r}; got pixels. Set model.codec=vae:{made_with}."
        )
    made_with = data.manifest["codec"]
    if codec.identity() != made_with["sha256"]:
        raise InputError(
            f"Expected the codec that made the latents in {data.folder}, {made_with['name']}; model.codec is another "
            "one, by its weights. Set model.codec to that one, or encode again."
        )
    align = config.fit_flow.align
    if align and align.encoder != "classifier" and config.stage != "reverse":
        raise InputError(
            f"Expected images for the encoder {align.encoder!r}; {config.data!r} holds latents alone. "
            "Set data to the images, or fit_flow.align.encoder=classifier."
        )


def load_flow(config: RunConfig, data: Source) -> ForwardFlow:
    """The flow of the model folder `flow_from`; raise unless it is the one that the config and the data describe."""
    assert config.flow_from is not None
    source, model = load_model(Path(config.flow_from)), config.model
    if difference := first_difference(source.config, model.model_copy(update={"reverse": source.config.reverse})):
        key, found, asked = difference
        raise InputError(
            f"Expected the flow that is in {config.flow_from}, with model.{key}={found}; got model.{key}={asked}. "
            f"Set model.{key}={'null' if found is None else found}."
        )
    unnamed = tuple(str(i) for i in range(model.num_classes))
    if source.class_names not in {unnamed, data.class_names}:
        raise InputError(
            f"Expected the classes of the flow in {config.flow_from}, {', '.join(source.class_names[:3])} ...; the "
            f"data has {', '.join(data.class_names[:3])} .... Give data with the same classes in the same order."
        )
    return source.flow


def needs_classifier(config: RunConfig) -> bool:
    """Whether the alignment or a distance looks through the classifier that is trained for them."""
    align, fit_reverse = config.fit_flow.align, config.fit_reverse
    for_flow = align is not None and align.encoder == "classifier" and config.stage != "reverse"
    kinds = [each.kind for each in fit_reverse.distances] if fit_reverse and config.stage != "flow" else []
    return for_flow or "classifier" in kinds


def train_model(run: Run) -> Trained:
    """All stages of a run, in eval mode at the end."""
    assert run.parts
    config, (model, loss, alignment, classifier) = run.config, run.parts
    seconds: dict[str, float] = {}
    if classifier:
        seconds["classifier"] = fit_classifier(run, classifier)
    fit_flow = FitFlow(model.flow, alignment)
    if config.stage in {"flow", "both"}:
        seconds["flow"] = fit(run, "flow", fit_flow, config.fit_flow)
    elif config.stage == "joint":
        assert model.reverse
        assert loss
        seconds["joint"] = fit(run, "joint", FitJoint(model.reverse, fit_flow, loss), config.fit_flow)
    else:
        model.flow.to(run.world.device).eval()
    if config.model.flow.volume_preserving and config.stage != "reverse":  # the most likely prior
        model.flow.prior_variance.copy_(measure_mean_squares(run, model.flow)[-1])
    if config.stage in {"both", "reverse"}:
        assert model.reverse
        assert loss
        seconds["reverse"] = fit_reverse(run, model.reverse, model.flow, loss)
    if model.reverse:
        model.reverse.belong_to(model.flow)
    return Trained(model, seconds)


def fit_classifier(run: Run, classifier: Classifier) -> float:
    """Train the classifier that losses look through, and freeze it again; returns the seconds it took in all."""
    like = run.config.fit_flow if run.config.stage == "flow" else run.config.fit_reverse or run.config.fit_flow
    short = {key: getattr(like, key) for key in ("batch_size", "log_every", "save_every")}
    config = CLASSIFIER_FIT.model_copy(update={**short, "steps": min(CLASSIFIER_FIT.steps, like.steps)})
    seconds = fit(run, "classifier", FitClassifier(classifier.requires_grad_(True)), config)
    classifier.requires_grad_(False)
    return seconds


def fit_reverse(run: Run, reverse: ReverseModel, flow: ForwardFlow, loss: ReverseLoss) -> float:
    """Fit the reverse model to the frozen flow; returns the seconds it took in all."""
    assert run.config.fit_reverse is not None
    if reverse.config.normalise:
        levels = measure_mean_squares(run, flow)[:-1]
        reverse.state_rms.copy_(torch.stack([level.mean().sqrt() for level in levels]))
    reverse.belong_to(flow)
    return fit(run, "reverse", FitReverse(reverse, flow, loss), run.config.fit_reverse)


def fit_judge(run: Run, config: FitConfig) -> tuple[Judge, float]:
    """A judge of the run's images, trained on them and their one-pixel shifts, and the seconds that took."""
    if not isinstance(run.data, ImageSet):
        raise InputError(f"Expected data that lie in memory for a judge; got {run.config.data!r}. Set data=digits.")
    with seeded_weights(run.config.seed):
        judge = Judge(run.config.model.channels, run.config.model.num_classes)
    return judge, fit(replace(run, data=with_shifts(run.data)), "judge", FitClassifier(judge), config)


def fit(run: Run, stage: str, objective: Objective, config: FitConfig) -> float:
    """Fit one model, from its saved state if there is one; returns the seconds it took in all."""
    folder = run.states / stage
    trainer = Trainer(objective, config, run.world)
    run.world.on_main(lambda: remove_leftovers(folder))
    found, faults = newest(folder)
    for fault in faults:
        warnings.warn(f"Passed over a damaged checkpoint: {fault}.", stacklevel=2)
    if faults and not found:
        warnings.warn(f"No sound checkpoint of the {stage} is left; it begins anew.", stacklevel=2)
    if found:
        trainer.load(found)
        objective.check_resumed()
    try:
        trainer.train(
            training_batches(run, stage, objective, config),
            hooks=run.listen(stage, trainer),
            save_to=folder,
            should_stop=run.should_stop,
        )
    except Interrupted as stop:
        raise Interrupted(f"the {stage} is {stop}") from None
    return trainer.seconds


def training_batches(run: Run, stage: str, objective: Objective, config: FitConfig) -> Callable[[int], Batch]:
    """A function step -> this process's part of the batch; `make_reader` says what it depends on."""
    codec, null_label, keys = run.codec.to(run.world.device), run.config.model.null_label, (run.config.seed, stage)
    reading = run.config.reading
    read = make_reader(run.data, config, reading, *keys, world=run.world)

    def make_batch(step: int) -> Batch:
        pixels, labels, indices = read(step)
        if reading.flip:
            pixels = flip(pixels, indices, *keys, step)
        clean = to_latents(codec, pixels, indices, *keys, step)
        noisy = add_noise(clean, indices, objective.noise_std, *keys, step, bin_width=objective.bin_width)
        labels = drop_labels(labels, indices, config.label_drop, null_label, *keys, step)
        guidance = draw_guidance(labels, indices, objective.max_guidance, null_label, *keys, step)
        images = None
        if objective.sees_images:
            images = PixelCodec().encode(pixels)
        return Batch(clean, noisy, labels, guidance, images, draw_window(*keys, step))

    return make_batch


def to_latents(codec: Codec, images: Tensor, indices: list[int], *keys: Key) -> Tensor:
    """Images as a data set holds them -> what the flow models; moments of a cache are drawn from, for (keys, index)."""
    if images.dtype == torch.uint8:
        return codec.encode(images)
    assert isinstance(codec, VaeCodec)
    mean, _ = images.chunk(2, dim=1)
    return codec.draw(images, normal_for(indices, tuple(mean.shape[1:]), "latent", *keys))


@torch.no_grad()
def measure_mean_squares(run: Run, flow: ForwardFlow) -> list[Tensor]:
    """Mean square of every value of the flow's states over noisy training images: for each level, (T, D)."""
    codec, (noise_std, bin_width) = run.codec.to(run.world.device), training_noise(flow.config)
    keys, seen = (run.config.seed, "state rms"), 0
    sums = [torch.zeros_like(flow.prior_variance) for _ in range(len(flow.blocks) + 1)]
    for pixels, labels, indices in some_examples(run.data, CALIBRATION_IMAGES, *keys):
        noisy = add_noise(to_latents(codec, pixels, indices, *keys), indices, noise_std, *keys, bin_width=bin_width)
        patches = patchify(noisy, flow.config.patch_size).to(run.world.device)
        states = flow(patches, labels.to(run.world.device)).states
        sums = [total + state.square().sum(dim=0) for total, state in zip(sums, states, strict=True)]
        seen += len(indices)
    return [total / seen for total in sums]
