"""Finishing of the reverse model: the Fréchet distance of its samples is lowered (FD-Loss, arXiv 2604.28190).

The distance is that of a whole population, whose mean and covariance are averaged over many steps; the gradient is that
of one batch.
"""

import torch
from torch import Tensor, nn

from biflow.config import DistanceConfig, FinishFitConfig, ModelConfig
from biflow.data.randomness import seeded_weights
from biflow.distributed import mean_over_processes
from biflow.features.classifier import Classifier
from biflow.features.perceptual import make_distance
from biflow.losses.frechet import TINY, Transport, frechet_loss, transport
from biflow.models.codec import Codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.batches import Batch
from biflow.training.objective import LossParts
from biflow.training.objectives import FitReverse
from biflow.training.reverse_loss import try_network

REFRESH = 10  # steps between two computations of the transport, which takes eigendecompositions
STRETCH = 1.2  # of the transport, at most: its statistics lag behind the model, and more overshoots


class Population(nn.Module):
    """Mean and second moment of the features of samples, averaged over the last ones, and those of real images."""

    mean: Tensor  # (F,), float64 as all others
    second: Tensor  # (F, F)
    real_mean: Tensor
    real_covariance: Tensor
    steps: Tensor  # updates so far, int64
    matrix: Tensor  # (F, F), of the transport
    distance: Tensor  # between the two, a scalar

    def __init__(self, samples: Tensor, real: Tensor, size: int) -> None:
        """samples and real: features, each (N, F). size: number of samples that are averaged over."""
        super().__init__()
        self.size, samples, real = size, samples.double(), real.double()
        mean, second = moments(samples)
        self.register_buffer("mean", mean)
        self.register_buffer("second", second)
        self.register_buffer("real_mean", real.mean(dim=0))
        self.register_buffer("real_covariance", real.T.cov(correction=0))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("matrix", torch.eye(len(mean), dtype=torch.float64))
        self.register_buffer("distance", torch.tensor(0.0, dtype=torch.float64))
        self.refresh()

    @property
    def spread(self) -> Tensor:
        """The total variance of the real features, a scalar: the unit of the distance."""
        return self.real_covariance.trace().clamp(min=TINY)

    @property
    def move(self) -> Transport:
        """The transport of the population onto the real images, as it was last computed."""
        return Transport(self.mean, self.matrix, self.real_mean, self.distance)

    @torch.no_grad()
    def update(self, mean: Tensor, second: Tensor, count: int, skipped: Tensor) -> None:
        """Average the moments of `count` new samples in, unless the step was skipped (scalar, 0 or 1)."""
        rate = min(1.0, count / self.size)
        for old, new in ((self.mean, mean), (self.second, second)):
            old.copy_(torch.where(skipped.bool(), old, old.lerp(new, rate)))  # a skipped step may have NaN
        self.steps += 1
        if self.steps % REFRESH == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the transport anew."""
        covariance = self.second - torch.outer(self.mean, self.mean)
        found = transport(self.mean, covariance, self.real_mean, self.real_covariance)
        self.matrix.copy_(found.limited(STRETCH).matrix)
        self.distance.copy_(found.distance)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and second moment (F, F) of features (N, F)."""
    return features.mean(dim=0), features.T @ features / len(features)


class PooledFeatures(nn.Module):
    """A frozen network's features, averaged over positions, of what the flow models."""

    def __init__(self, config: DistanceConfig, model: ModelConfig, codec: Codec, classifier: Classifier | None) -> None:
        super().__init__()
        self.codec = codec if config.space == "images" else None
        with seeded_weights(0):  # a user's module may initialise weights at random
            self.network = make_distance(config, classifier=classifier)
        shape = (model.channels, model.image_size, model.image_size)
        try_network(config, self.network, shape, self, expected="two rows of features", dims=2)

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, P, H, W) -> (B, F), in float32 in autocast too, as statistics of features are compared."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.network.features(latents if self.codec is None else self.codec.to_images(latents))


class FinishReverse(FitReverse):
    """`FitReverse`, and the Fréchet distance between samples and training images in the features of a frozen network.

    The distance is relative to the total variance of the real features.
    """

    samples_prior = True

    def __init__(
        self, fit_reverse: FitReverse, config: FinishFitConfig, features: PooledFeatures, population: Population
    ) -> None:
        super().__init__(fit_reverse.reverse, fit_reverse.flow, fit_reverse.loss)
        self.model = nn.ModuleDict({"reverse": self.reverse, "population": population})
        self.config, self.features, self.population = config, features, population
        self.seen: list[tuple[Tensor, Tensor]] = []  # moments of the parts of the current step

    def forward(self, batch: Batch) -> LossParts:
        """The loss of `FitReverse` plus the weighted distance."""
        fitted = super().forward(batch)
        assert batch.prior is not None
        assert batch.prior_labels is not None
        features = self.features(
            sample(self.reverse, self.flow, batch.prior, batch.prior_labels, guidance=self.config.guidance)
        )
        if self.training:
            self.seen.append(moments(features.detach().double()))
        distance = frechet_loss(features, self.population.move, self.population.spread).mean()
        parts = {**fitted.parts, "frechet_distance": (self.population.distance / self.population.spread).float()}
        return LossParts(fitted.total + self.config.features.weight * distance, parts)

    @torch.no_grad()
    def after_step(self, skipped: Tensor) -> None:
        """Update the population; collective."""
        seen, self.seen = self.seen, []
        mean, second = (mean_over_processes(torch.stack(each).mean(dim=0)) for each in zip(*seen, strict=True))
        self.population.update(mean, second, self.config.batch_size, skipped)


def sample(reverse: ReverseModel, flow: ForwardFlow, noise: Tensor, labels: Tensor, *, guidance: float) -> Tensor:
    """One-pass samples (B, P, H, W) of what the flow models, from normal noise (B, T, D), with gradient."""
    patches = reverse(flow.scale_noise(noise), labels, guidance).image
    return unpatchify(patches, flow.config.patch_size, flow.config.channels).float()
