"""The likelihood of single images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from biflow.config import Average, ScoreNoise
from biflow.errors import InputError, check_number, choose
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import PixelCodec
from biflow.models.model import Model

BATCH_SIZE = 128

AVERAGES: Mapping[Average, Callable[[Tensor], Tensor]] = {
    "mean": lambda log_probs: log_probs.mean(dim=0),
    "importance": lambda log_probs: log_probs.logsumexp(dim=0) - math.log(len(log_probs)),
}
"""(draws, N) -> (N,)."""


class Ranked(NamedTuple):
    """One image's place in a ranking."""

    rank: int
    image: str
    nats: float
    bits_per_dim: float


class Scores(NamedTuple):
    """How likely images are; both (N,), float64, on the CPU."""

    nats: Tensor  # log-density of the image in the flow's units, summed over all values
    bits_per_dim: Tensor  # the same as the length of a code for images quantised to grey levels

    def minus(self, other: "Scores") -> "Scores":
        """How much likelier, image by image: of a label, what it tells of the image."""
        return Scores(self.nats - other.nats, self.bits_per_dim - other.bits_per_dim)

    def rank(self, names: Sequence[str]) -> list[Ranked]:
        """The images by likelihood, the least likely first, before them what is no number; ranks count from 1."""
        rows = list(zip(names, self.nats.tolist(), self.bits_per_dim.tolist(), strict=True))
        order = self.nats.nan_to_num(nan=-math.inf).argsort(stable=True).tolist()
        return [Ranked(place, *rows[i]) for place, i in enumerate(order, start=1)]


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
    """Log-likelihood of uint8 images (N, P, H, W) given labels (N,), over this many draws of noise on each.

    noise: "uniform" spreads each grey level over its bin and adds nothing else, which makes the bits an upper bound on
    the code length of the image itself, the figure that papers report (TARFlow, arXiv 2412.06329); "training" adds what
    the flow was trained with.
    average: "mean" of the draws' log-densities, or "importance": the log of their mean density, which for uniform
    noise is a tighter bound the more draws there are (IWAE, arXiv 1509.00519).
    """
    check_number(draws, "draws", least=1, whole=True)
    check_number(seed, "seed", whole=True)
    if model.config.codec != "pixels":
        raise InputError(
            f"Expected a model of pixels; got one of {model.config.codec!r} latents, whose density is not that of "
            "images. Score with a model of pixels."
        )
    choose(dict.fromkeys(get_args(ScoreNoise)), noise, "noise")
    combine = choose(AVERAGES, average, "average")
    chunks = []
    for rows in torch.arange(len(pixels)).split(BATCH_SIZE):
        of, log_probs = labels[rows].to(model.device), []
        for k in range(draws):
            patches = model.noisy_patches(pixels[rows], rows.tolist(), "score", seed, k, noise=noise)
            log_probs.append(model.flow.log_prob(patches, of).double().cpu())
        chunks.append(combine(torch.stack(log_probs)))
    nats = torch.cat(chunks)
    return Scores(nats, bits_per_dim(nats, pixels[0].numel(), PixelCodec.bin_width))


@torch.no_grad()
def cycle_error(model: Model, pixels: Tensor, labels: Tensor, *, z: Tensor) -> Tensor:
    """How far the flow maps images from the noise they were sampled from: (N,), 0 for an exact inverse.

    The root mean square of F(x) - z over the values of z (N, T, D), in units of the noise's standard deviation, for
    uint8 images x (N, P, H, W) with labels (N,).  Images without the flow's training noise keep some distance.
    """
    chunks = []
    for rows in torch.arange(len(pixels)).split(BATCH_SIZE):
        patches = model.noisy_patches(pixels[rows], rows.tolist(), noise="none")
        error = model.flow(patches, labels[rows].to(model.device)).z - z[rows].to(model.device)
        chunks.append((error / model.flow.prior_variance.sqrt()).square().mean(dim=(1, 2)).sqrt().cpu())
    return torch.cat(chunks)
