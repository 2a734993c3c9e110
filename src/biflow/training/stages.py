"""The stages of a run: fit the flow, then fit the reverse model to the frozen flow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.checkpoint import Model, load_model, new_model
from biflow.config import FitConfig, ModelConfig, ReverseFitConfig, RunConfig
from biflow.data.datasets import ImageSet, indices_at
from biflow.data.perturb import add_noise, draw_guidance, draw_window, drop_labels
from biflow.data.randomness import seeded_weights
from biflow.errors import InputError, Interrupted
from biflow.features.classifier import Classifier
from biflow.models.codec import make_codec, training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.training.distributed import World
from biflow.training.loop import Batch, Hook, Objective, Trainer
from biflow.training.objectives import FitClassifier, FitFlow, FitJoint, FitReverse
from biflow.training.reverse_loss import ReverseLoss

CALIBRATION_IMAGES = 4096
CALIBRATION_BATCH = 256
CLASSIFIER_FIT = FitConfig(steps=1000, learning_rate=1e-3, ema_decay=0.9, label_drop=0.0)


@dataclass(frozen=True)
class Run:
    """A training run: what to train, on what, and where its state is kept."""

    config: RunConfig
    data: ImageSet
    world: World
    states: Path  # a folder; a state found in it is taken up
    listen: Callable[[str, Trainer], Sequence[Hook]]  # (stage, trainer) -> hooks
    should_stop: Callable[[], bool] = lambda: False


class Trained(NamedTuple):
    """The model, and the seconds that each stage took."""

    model: Model
    seconds: dict[str, float]


def check_fits(config: RunConfig, data: ImageSet) -> None:
    """Raise unless the model is made for images and classes like those of the data."""
    model = config.model
    channels, _, image_size = make_codec(model.codec).latent_shape(tuple(data.images.shape[1:]))
    found = {"image_size": image_size, "channels": channels, "num_classes": len(data.class_names)}
    for key, value in found.items():
        if getattr(model, key) != value:
            raise InputError(
                f"Expected model.{key} to be {value}, as in the data set {config.data!r}; got {getattr(model, key)}. "
                f"Set model.{key}={value}."
            )
    if config.flow_from:
        load_flow(config)
    if config.stage != "flow":
        make_reverse_loss(config, data, Classifier(model.channels, max(1, model.num_classes)))


def load_flow(config: RunConfig) -> ForwardFlow:
    """The flow of the model folder `flow_from`; raise unless it is the one that the config describes."""
    assert config.flow_from is not None
    source, model = load_model(Path(config.flow_from)), config.model
    for key in ModelConfig.model_fields.keys() - {"reverse"}:
        found, wanted = getattr(source.config, key), getattr(model, key)
        if found != wanted:
            raise InputError(
                f"Expected a flow with model.{key} as in {config.flow_from}, {found}; got {wanted}. "
                "Describe the flow that is there."
            )
    return source.flow


def make_reverse_loss(config: RunConfig, data: ImageSet, classifier: Classifier | None) -> ReverseLoss:
    """The loss of the reverse model, with the networks that its distances look through; raise unless they can."""
    assert config.fit_reverse is not None
    if any(each.kind == "classifier" for each in config.fit_reverse.distances) and not config.model.num_classes:
        raise InputError(
            "Expected classes for the distance 'classifier', which is trained to tell them apart; this model is "
            "unconditional. Choose another distance."
        )
    shape = tuple(data.images.shape[1:])
    return ReverseLoss(config.fit_reverse, config.model, image_shape=shape, classifier=classifier)


def train_model(run: Run) -> Trained:
    """All stages of a run, in eval mode at the end."""
    config, stage = run.config.model, run.config.stage
    if stage == "flow":
        config = config.model_copy(update={"reverse": None})
    model = new_model(config, run.data.class_names, seed=run.config.seed)
    seconds: dict[str, float] = {}
    loss = make_reverse_loss(run.config, run.data, fit_classifier(run, seconds)) if model.reverse else None
    if stage == "reverse":
        model.flow.load_state_dict(load_flow(run.config).state_dict())
        model.flow.to(run.world.device).eval()
    elif stage != "joint":
        seconds["flow"] = fit(run, "flow", FitFlow(model.flow), run.config.fit_flow)
    elif model.reverse and loss:
        seconds["joint"] = fit(run, "joint", FitJoint(model.reverse, model.flow, loss), run.config.fit_flow)
    if config.flow.volume_preserving and stage != "reverse":  # the likeliest prior for what the flow makes of the data
        model.flow.prior_variance.copy_(measure_mean_squares(run, model.flow)[-1])
    if stage in {"both", "reverse"} and model.reverse and loss and run.config.fit_reverse:
        if model.reverse.config.normalise:
            levels = measure_mean_squares(run, model.flow)[:-1]
            model.reverse.state_rms.copy_(torch.stack([level.mean().sqrt() for level in levels]))
        seconds["reverse"] = fit(run, "reverse", FitReverse(model.reverse, model.flow, loss), run.config.fit_reverse)
    if model.reverse:
        model.reverse.belong_to(model.flow)
    return Trained(model, seconds)


def fit_classifier(run: Run, seconds: dict[str, float]) -> Classifier | None:
    """The network of the distance "classifier", trained on the run's own images, if a distance asks for it."""
    if not any(each.kind == "classifier" for each in (run.config.fit_reverse or ReverseFitConfig()).distances):
        return None
    with seeded_weights(run.config.seed):
        classifier = Classifier(run.config.model.channels, run.config.model.num_classes)
    seconds["classifier"] = fit(run, "classifier", FitClassifier(classifier), CLASSIFIER_FIT)
    return classifier


def fit(run: Run, stage: str, objective: Objective, config: FitConfig) -> float:
    """Fit one model, from its saved state if there is one; returns the seconds it took in all."""
    path = run.states / f"{stage}.pt"
    trainer = Trainer(objective, config, run.world)
    if path.exists():
        trainer.load(path)
    try:
        trainer.train(
            training_batches(run, stage, objective, config),
            hooks=run.listen(stage, trainer),
            save_to=path,
            should_stop=run.should_stop,
        )
    except Interrupted as stop:
        raise Interrupted(f"the {stage} is {stop}") from None
    return trainer.seconds


def training_batches(run: Run, stage: str, objective: Objective, config: FitConfig) -> Callable[[int], Batch]:
    """A function step -> this process's part of the batch; it depends on (seed, stage, step) alone."""
    codec, null_label = make_codec(run.config.model.codec).to(run.world.device), run.config.model.null_label

    def make_batch(step: int) -> Batch:
        keys = (run.config.seed, stage)
        everyone = indices_at(step, *keys, batch_size=config.batch_size, num_images=len(run.data))
        chosen = run.world.share(everyone)
        indices = chosen.tolist()
        clean = codec.encode(run.data.images[chosen])
        noisy = add_noise(clean, indices, objective.noise_std, *keys, step, bin_width=objective.bin_width)
        labels = drop_labels(run.data.labels[chosen], indices, config.label_drop, null_label, *keys, step)
        guidance = draw_guidance(labels, indices, objective.max_guidance, null_label, *keys, step)
        clean, noisy, labels, guidance = (part.to(run.world.device) for part in (clean, noisy, labels, guidance))
        return Batch(clean, noisy, labels, guidance, draw_window(*keys, step))

    return make_batch


@torch.no_grad()
def measure_mean_squares(run: Run, flow: ForwardFlow) -> list[Tensor]:
    """Mean square of every value of the flow's states over noisy training images: for each level, (T, D)."""
    codec, (noise_std, bin_width) = make_codec(flow.config.codec).to(run.world.device), training_noise(flow.config)
    everyone = torch.arange(min(len(run.data), CALIBRATION_IMAGES))
    sums = [torch.zeros_like(flow.prior_variance) for _ in range(len(flow.blocks) + 1)]
    for chosen in everyone.split(CALIBRATION_BATCH):
        clean = codec.encode(run.data.images[chosen])
        noisy = add_noise(clean, chosen.tolist(), noise_std, run.config.seed, "state rms", bin_width=bin_width)
        patches = patchify(noisy, flow.config.patch_size).to(run.world.device)
        states = flow(patches, run.data.labels[chosen].to(run.world.device)).states
        sums = [total + state.square().sum(dim=0) for total, state in zip(sums, states, strict=True)]
    return [total / len(everyone) for total in sums]
