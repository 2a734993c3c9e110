"""Per-image likelihood, ranking and cycle error."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from biflow.config import Average, ScoreNoise
from biflow.data.randomness import content_keys
from biflow.errors import InputError, check_choice, check_number, choose
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.model import Model

BATCH_SIZE = 128

AVERAGES: Mapping[Average, Callable[[Tensor], Tensor]] = {
    "mean": lambda log_probs: log_probs.mean(dim=0),
    "importance": lambda log_probs: log_probs.logsumexp(dim=0) - math.log(len(log_probs)),
}
"""Log-densities (draws, N) -> (N,)."""


class Ranked(NamedTuple):
    """One image in a ranking by likelihood."""

    rank: int
    image: str
    nats: float
    bits_per_dim: float


class Scores(NamedTuple):
    """Log-likelihoods of N images, both (N,), float64 on the CPU."""

    nats: Tensor  # log-density in the flow's units, summed over all values
    bits_per_dim: Tensor  # the same as code length of images quantised to grey levels

    def minus(self, other: "Scores") -> "Scores":
        """Differences per image: the log-likelihood ratio of two labels or models."""
        return Scores(self.nats - other.nats, self.bits_per_dim - other.bits_per_dim)

    def rank(self, names: Sequence[str]) -> list[Ranked]:
        """Rank images by likelihood, least likely first, NaN before all; ranks count from 1."""
        rows = list(zip(names, self.nats.tolist(), self.bits_per_dim.tolist(), strict=True))
        order = self.nats.nan_to_num(nan=-math.inf).argsort(stable=True).tolist()
        return [Ranked(rank, *rows[i]) for rank, i in enumerate(order, start=1)]


@torch.no_grad()
def score_images(
    model: Model,
    pixels: Tensor,
    labels: Tensor,
    *,
    noise: ScoreNoise = "uniform",
    draws: int = 1,
    average: Average = "mean",
    seed: int = 0,
) -> Scores:
    """Log-likelihood of uint8 images (N, P, H, W) given labels (N,), averaged over draws of noise.

    The noise depends on the seed and the image's own values, so a score does not depend on the other images.

    noise: "uniform" only dequantises, so that the bits per dimension bound the image's code length from above, as
    papers report them (TARFlow, arXiv 2412.06329); "training" adds the flow's training noise.
    average: "mean" of the log-densities, or "importance", the log of the mean density: for uniform noise a bound that
    tightens with more draws (IWAE, arXiv 1509.00519).
    """
    check_number(draws, "draws", least=1, whole=True)
    check_number(seed, "seed", whole=True)
    if model.config.codec != "pixels":
        what = f"{model.config.codec!r} latents"
        raise InputError(f"Expected a pixel model; got {what}, whose density is not that of images. Use a pixel model.")
    check_choice(noise, get_args(ScoreNoise), "noise")
    combine = choose(AVERAGES, average, "average")
    chunks = []
    for rows in torch.arange(len(pixels)).split(BATCH_SIZE):
        row_labels, keys, log_probs = labels[rows].to(model.device), content_keys(pixels[rows]), []
        for k in range(draws):
            patches = model.noisy_patches(pixels[rows], keys, "score", seed, k, noise=noise)
            log_probs.append(model.flow.log_prob(patches, row_labels).double().cpu())
        chunks.append(combine(torch.stack(log_probs)))
    nats = torch.cat(chunks)
    return Scores(nats, bits_per_dim(nats, pixels[0].numel(), PixelCodec.bin_width))


@torch.no_grad()
def cycle_error(model: Model, pixels: Tensor, labels: Tensor, *, z: Tensor) -> Tensor:
    """Cycle error of sampled images: (N,), lower is better, 0 for an exact inverse.

    The root mean square of F(x) - z for uint8 images x (N, P, H, W) with labels (N,) and the noise z (N, T, D) they
    were sampled from, in units of the prior's standard deviation. Clean images keep some error, since the flow models
    noisy ones.
    """
    chunks = []
    for rows in torch.arange(len(pixels)).split(BATCH_SIZE):
        patches = model.noisy_patches(pixels[rows], rows.tolist(), noise="none")
        error = model.flow(patches, labels[rows].to(model.device)).z - z[rows].to(model.device)
        chunks.append((error / model.flow.prior_variance.sqrt()).square().mean(dim=(1, 2)).sqrt().cpu())
    return torch.cat(chunks)
