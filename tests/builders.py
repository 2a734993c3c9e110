"""Tiny real models and configs; nothing is mocked."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from biflow.config import FitConfig, FlowConfig, FlowFitConfig, ModelConfig, ReverseConfig, ReverseFitConfig, RunConfig
from biflow.data.datasets import ImageSet
from biflow.models.codec import make_codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.model import Model, new_model
from biflow.models.reverse_model import ReverseModel
from biflow.training.objectives import FitReverse
from biflow.training.reverse_loss import ReverseLoss

NUM_CLASSES = 3


def tiny_config(**changes: object) -> ModelConfig:
    """4x4 grey images as 4 patches of 4 values, three classes."""
    return ModelConfig(
        **{
            "image_size": 4,
            "channels": 1,
            "patch_size": 2,
            "num_classes": NUM_CLASSES,
            "noise_std": 0.2,
            "flow": FlowConfig(blocks=3, layers=2, width=16, head_width=8),
            "reverse": ReverseConfig(layers=1, width=16, head_width=8, class_tokens=2),
            **changes,
        }
    )


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> Model:
    """Networks in eval mode whose every weight is random, so that no block is the identity."""
    torch.manual_seed(seed)
    config = config or tiny_config()
    model = new_model(config, tuple("abc") if config.num_classes == NUM_CLASSES else ())
    for network in (model.flow, model.reverse):
        if network is not None:
            _randomise(network)
    return model


def tiny_flow(**changes: object) -> ForwardFlow:
    """A flow in float64."""
    return tiny_model(tiny_config(**changes)).flow.double()


def tiny_reverse(**changes: object) -> ReverseModel:
    """A reverse model in float64."""
    reverse = tiny_model(tiny_config(**changes)).reverse
    assert reverse is not None
    return reverse.double()


def tiny_images(count: int = 12, seed: int = 0) -> ImageSet:
    """Random 4x4 images, every class equally often."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % NUM_CLASSES, tuple("abc"))


def tiny_run(**changes: object) -> RunConfig:
    """A run of a few steps."""
    fit = FitConfig(steps=6, batch_size=4, warmup_steps=2, log_every=1, save_every=2, ema_decay=0.9)
    fits = {"fit_flow": FlowFitConfig(**fit.model_dump()), "fit_reverse": ReverseFitConfig(**fit.model_dump())}
    return RunConfig(**{"model": tiny_config(), **fits, **changes})


def tiny_objective(model: Model, **changes: object) -> FitReverse:
    """What fits the model's reverse model to its flow, by the mean squared error unless changed."""
    assert model.reverse is not None
    fit = ReverseFitConfig(**changes)
    codec = make_codec(model.config.codec)
    loss = ReverseLoss(fit, model.config, codec=codec, image_shape=(model.config.channels, 4, 4))
    return FitReverse(model.reverse, model.flow, loss)


def noise_and_labels(batch: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, 4, 4) in float64 and labels (B,) that include the null label."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 4, 4, generator=generator, dtype=torch.float64)
    return z, torch.arange(batch) % (NUM_CLASSES + 1)


def _randomise(network: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # smaller in front of the exponential: three random blocks in a row must not overflow
            parameter.add_((0.03 if "project_out" in name else 0.15) * torch.randn_like(parameter))
    network.eval()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, which is closed again: one left open is an error in whichever test runs next."""
    with np.load(path) as file:
        return dict(file)


def with_names(model: Model, names: tuple[str, ...]) -> Model:
    """The same model, its classes under other names."""
    return Model(model.config, names, model.flow, model.reverse)
