"""Stages of a training run: fit the flow, then the reverse model to the frozen flow, or both jointly."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.checkpoint import load_model
from biflow.config import FinishFitConfig, FitConfig, RunConfig
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
from biflow.files import remove_leftovers
from biflow.models.codec import Codec, PixelCodec, VaeCodec, training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model, new_model
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.checkpoints import newest, tidy
from biflow.training.finish import FinishReverse, PooledFeatures, Population, sample
from biflow.training.loop import Hook, Trainer
from biflow.training.objective import Objective
from biflow.training.objectives import FitClassifier, FitFlow, FitJoint, FitReverse
from biflow.training.reverse_loss import ReverseLoss

CALIBRATION_IMAGES = 4096
FINISH_IMAGES = 10_000  # real ones, for their statistics, and samples to start from
CLASSIFIER_FIT = FitConfig(steps=1000, learning_rate=1e-3, ema_decay=0.9, label_drop=0.0)


class RunNetworks(NamedTuple):
    """All networks of a run: the model and those of its losses."""

    model: Model
    reverse_loss: ReverseLoss | None
    alignment: Alignment | None
    classifier: Classifier | None  # for the "classifier" distance and encoder; trained before the model
    finish_features: PooledFeatures | None


@dataclass(frozen=True)
class Run:
    """A training run: settings, data, networks, and the folder of its checkpoints."""

    config: RunConfig
    data: Source
    codec: Codec
    world: World
    states: Path  # folder of checkpoints; training resumes from the newest
    make_hooks: Callable[[str, Trainer], Sequence[Hook]]  # (stage, trainer) -> hooks
    should_stop: Callable[[], bool] = lambda: False
    networks: RunNetworks | None = None  # None if only a classifier is trained


class Trained(NamedTuple):
    """A trained model, and the training time of each stage in seconds."""

    model: Model
    seconds: dict[str, float]


def prepare(config: RunConfig, data: Source, codec: Codec) -> RunNetworks:
    """Build all networks of a run, and check that they fit the data, each other and the installed packages."""
    check_data(config, data, codec)
    trained = config.model.model_copy(update={"reverse": None}) if config.stage == "flow" else config.model
    model = new_model(trained, data.class_names, seed=config.seed, codec=codec)
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
    finish = config.fit_finish
    features = PooledFeatures(finish.features, config.model, codec, classifier) if finish else None
    align, alignment = config.fit_flow.align, None
    if align and config.stage != "reverse":
        with seeded_weights(config.seed):
            encoder = make_encoder(align, classifier=classifier)
            alignment = Alignment(align, config.model, encoder, image_shape=data.image_shape)
    return RunNetworks(model, loss, alignment, classifier, features)


def check_data(config: RunConfig, data: Source, codec: Codec) -> None:
    """Raise unless the model's image size, channels and classes match the data's."""
    if isinstance(data, LatentSet):
        check_latents(config, data, codec)
    model = config.model
    channels, _, image_size = codec.latent_shape(data.image_shape)
    expected = {"image_size": image_size, "channels": channels, "num_classes": len(data.class_names)}
    faults = {key: value for key, value in expected.items() if getattr(model, key) != value}
    if faults:
        what = f"the data set {config.data!r}" if model.codec == "pixels" else f"the codec's latents of {config.data!r}"
        raise InputError(
            f"Expected {' and '.join(f'model.{key} to be {value}' for key, value in faults.items())}, as in {what}; "
            f"got {' and '.join(str(getattr(model, key)) for key in faults)}. "
            f"Set {' '.join(f'model.{key}={value}' for key, value in faults.items())}."
        )
    if needs_classifier(config) and not model.num_classes:
        raise InputError(
            "Expected classes for the encoder or distance 'classifier'; this model is unconditional. Choose another."
        )


def check_latents(config: RunConfig, data: LatentSet, codec: Codec) -> None:
    """Raise unless a latent cache was made with the model's codec and no encoder needs the images."""
    made_with = data.manifest["codec"]
    if not isinstance(codec, VaeCodec):
        raise InputError(
            f"Expected a latent model for {config.data!r}; got a pixel model. Set model.codec=vae:{made_with['name']}."
        )
    if codec.identity() != made_with["sha256"]:
        raise InputError(
            f"Expected the codec of the latents in {data.folder}, {made_with['name']}; the weights of model.codec are "
            "different. Set model.codec to that codec, or encode again."
        )
    align = config.fit_flow.align
    if align and align.encoder != "classifier" and config.stage != "reverse":
        raise InputError(
            f"Expected images for the encoder {align.encoder!r}; {config.data!r} holds only latents. "
            "Set data to the images, or fit_flow.align.encoder=classifier."
        )


def load_flow(config: RunConfig, data: Source) -> ForwardFlow:
    """Load the flow of the model folder `flow_from`; raises unless its config and classes match."""
    assert config.flow_from is not None
    source, model = load_model(Path(config.flow_from)), config.model
    if difference := first_difference(source.config, model.model_copy(update={"reverse": source.config.reverse})):
        key, found, asked = difference
        raise InputError(
            f"Expected the flow config of {config.flow_from}, with model.{key}={found}; got model.{key}={asked}. "
            f"Set model.{key}={'null' if found is None else found}."
        )
    unnamed = tuple(str(i) for i in range(model.num_classes))
    if source.class_names not in {unnamed, data.class_names}:
        raise InputError(
            f"Expected the classes of the flow in {config.flow_from}, {', '.join(source.class_names[:3])} ...; the "
            f"data has {', '.join(data.class_names[:3])} .... Use data with the same classes in the same order."
        )
    return source.flow


def needs_classifier(config: RunConfig) -> bool:
    """Whether the alignment or a distance uses the classifier that is trained on the run's images."""
    align, fit_reverse = config.fit_flow.align, config.fit_reverse
    for_flow = align is not None and align.encoder == "classifier" and config.stage != "reverse"
    kinds = [each.kind for each in fit_reverse.distances] if fit_reverse and config.stage != "flow" else []
    kinds += [config.fit_finish.features.kind] if config.fit_finish else []
    return for_flow or "classifier" in kinds


def train_model(run: Run) -> Trained:
    """Train all stages of a run; returns the model in eval mode."""
    assert run.networks
    config, (model, loss, alignment, classifier, features) = run.config, run.networks
    seconds: dict[str, float] = {}
    if classifier:
        seconds["classifier"] = fit_classifier(run, classifier)
    fit_flow = FitFlow(model.flow, alignment)
    if config.stage in {"flow", "both"}:
        seconds["flow"] = fit(run, "flow", fit_flow, config.fit_flow)
    elif config.stage == "joint" and model.reverse and loss:
        seconds["joint"] = fit(run, "joint", FitJoint(model.reverse, fit_flow, loss), config.fit_flow)
    else:
        model.flow.to(run.world.device).eval()
    if config.model.flow.volume_preserving and config.stage != "reverse":  # maximum-likelihood prior
        model.flow.prior_variance.copy_(measure_mean_squares(run, model.flow)[-1])
    if config.stage in {"both", "reverse"} and model.reverse and loss:
        seconds["reverse"] = fit_reverse(run, model.reverse, model.flow, loss)
    if model.reverse and loss and features:
        seconds["finish"] = fit_finish(run, FitReverse(model.reverse, model.flow, loss), features)
    if model.reverse:
        model.reverse.record_flow(model.flow)
    return Trained(model, seconds)


def fit_classifier(run: Run, classifier: Classifier) -> float:
    """Train the classifier that losses use, then freeze it; returns the training time in seconds."""
    like = run.config.fit_flow if run.config.stage == "flow" else run.config.fit_reverse or run.config.fit_flow
    short = {key: getattr(like, key) for key in ("batch_size", "log_every", "save_every")}
    config = CLASSIFIER_FIT.model_copy(update={**short, "steps": min(CLASSIFIER_FIT.steps, like.steps)})
    seconds = fit(run, "classifier", FitClassifier(classifier.requires_grad_(True)), config)
    classifier.requires_grad_(False)
    return seconds


def fit_reverse(run: Run, reverse: ReverseModel, flow: ForwardFlow, loss: ReverseLoss) -> float:
    """Fit the reverse model to the frozen flow; returns the training time in seconds."""
    assert run.config.fit_reverse is not None
    if reverse.config.normalise:
        levels = measure_mean_squares(run, flow)[:-1]
        reverse.state_rms.copy_(torch.stack([level.mean().sqrt() for level in levels]))
    reverse.record_flow(flow)
    return fit(run, "reverse", FitReverse(reverse, flow, loss), run.config.fit_reverse)


def fit_finish(run: Run, objective: FitReverse, features: PooledFeatures) -> float:
    """Lower the Fréchet distance of the reverse model's samples; returns the training time in seconds."""
    config = run.config.fit_finish
    assert config is not None
    population = measure_population(run, objective, features, config)
    return fit(run, "finish", FinishReverse(objective, config, features, population), config)


@torch.no_grad()
def measure_population(
    run: Run, objective: FitReverse, features: PooledFeatures, config: FinishFitConfig
) -> Population:
    """Features of training images, and of as many samples with their labels."""
    codec, device, keys = run.codec.to(run.world.device), run.world.device, (run.config.seed, "population")
    reverse, flow, features = objective.reverse.to(device).eval(), objective.flow.to(device), features.to(device)
    real, samples = [], []
    for pixels, labels, indices in some_examples(run.data, FINISH_IMAGES, *keys):
        real.append(features(to_latents(codec, pixels, indices, *keys).to(device)))
        noise = normal_for(indices, run.config.model.noise_shape, "prior", *keys).to(device)
        samples.append(features(sample(reverse, flow, noise, labels.to(device), guidance=config.guidance)))
    return Population(torch.cat(samples), torch.cat(real), config.population)


def fit_judge(run: Run, config: FitConfig) -> tuple[Judge, float]:
    """Train a reference classifier on the run's images and their one-pixel shifts; returns it and the seconds taken."""
    if not isinstance(run.data, ImageSet):
        raise InputError(f"Expected in-memory data for the classifier; got {run.config.data!r}. Set data=digits.")
    with seeded_weights(run.config.seed):
        judge = Judge(run.config.model.channels, run.config.model.num_classes)
    return judge, fit(replace(run, data=with_shifts(run.data)), "judge", FitClassifier(judge), config)


def fit(run: Run, stage: str, objective: Objective, config: FitConfig) -> float:
    """Train one model, resuming from its newest checkpoint; returns the training time over all sessions in seconds."""
    folder = run.states / stage
    trainer = Trainer(objective, config, run.world)
    run.world.on_main(lambda: remove_leftovers(folder))
    found, faults = newest(folder)
    for fault in faults:
        warnings.warn(f"Skipped a damaged checkpoint: {fault}.", stacklevel=2)
    if faults and not found:
        warnings.warn(f"No intact checkpoint of the {stage} is left; it starts over.", stacklevel=2)
    if found:
        trainer.load(found)
        objective.check_resumed()
        if not faults:  # a damaged checkpoint would count as kept
            run.world.on_main(lambda: tidy(folder, config))
    try:
        trainer.train(
            training_batches(run, stage, objective, config),
            hooks=run.make_hooks(stage, trainer),
            save_to=folder,
            should_stop=run.should_stop,
        )
    except Interrupted as stop:
        raise Interrupted(f"the {stage} is {stop}") from None
    return trainer.seconds


def training_batches(run: Run, stage: str, objective: Objective, config: FitConfig) -> Callable[[int], Batch]:
    """A function that maps a step to this process's share of the batch; deterministic, see `make_reader`."""
    codec, null_label, keys = run.codec.to(run.world.device), run.config.model.null_label, (run.config.seed, stage)
    reading = run.config.reading
    read = make_reader(run.data, config, reading, *keys, world=run.world)

    def make_batch(step: int) -> Batch:
        pixels, labels, indices = read(step)
        if reading.flip:
            pixels = flip(pixels, indices, *keys, step)
        clean = to_latents(codec, pixels, indices, *keys, step)
        noisy = add_noise(clean, indices, objective.noise_std, *keys, step, bin_width=objective.bin_width)
        known, labels = labels, drop_labels(labels, indices, config.label_drop, null_label, *keys, step)
        guidance = draw_guidance(labels, indices, objective.max_guidance, null_label, *keys, step)
        images = PixelCodec().encode(pixels) if objective.sees_images else None
        batch = Batch(clean, noisy, labels, guidance, images, draw_window(*keys, step))
        if not objective.samples_prior:
            return batch
        prior = normal_for(indices, run.config.model.noise_shape, "prior", *keys, step)
        return batch._replace(prior=prior, prior_labels=known)

    return make_batch


def to_latents(codec: Codec, images: Tensor, indices: list[int], *keys: Key) -> Tensor:
    """Encode uint8 images, or sample from the cached moments of latents with one random key per (keys, index)."""
    if images.dtype == torch.uint8:
        return codec.encode(images)
    assert isinstance(codec, VaeCodec)
    mean, _ = images.chunk(2, dim=1)
    return codec.draw(images, normal_for(indices, tuple(mean.shape[1:]), "latent", *keys))


@torch.no_grad()
def measure_mean_squares(run: Run, flow: ForwardFlow) -> list[Tensor]:
    """Mean squares of the flow's states over noisy training images, one (T, D) per level."""
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
