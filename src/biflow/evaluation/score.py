"""The likelihood of single images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from biflow.checkpoint import Model
from biflow.config import Average, ScoreNoise
from biflow.data.perturb import add_noise
from biflow.errors import InputError, choose
from biflow.losses.likelihood import bits_per_dim
from biflow.models.codec import Codec, PixelCodec, training_noise
from biflow.models.patches import patchify

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
    if draws < 1:
        raise InputError(f"Expected 1 or more draws; got {draws}.")
    if model.config.codec != "pixels":
        raise InputError(
            f"Expected a model of pixels; got one of {model.config.codec!r} latents, whose density is not that of "
            "images. Score with a model of pixels."
        )
    codec = PixelCodec()
    noises = {"uniform": (0.0, codec.bin_width), "training": training_noise(model.config)}
    std, bin_width = choose(noises, noise, "noise")
    combine = choose(AVERAGES, average, "average")
    device = model.flow.prior_variance.device
    chunks = []
    for places in torch.arange(len(pixels)).split(BATCH_SIZE):
        clean = codec.encode(pixels[places])
        log_probs = []
        for k in range(draws):
            noisy = add_noise(clean, places.tolist(), std, "score", seed, k, bin_width=bin_width)
            patches = patchify(noisy, model.config.patch_size).to(device)
            log_probs.append(model.flow.log_prob(patches, labels[places].to(device)).double().cpu())
        chunks.append(combine(torch.stack(log_probs)))
    nats = torch.cat(chunks)
    return Scores(nats, bits_per_dim(nats, pixels[0].numel(), codec.bin_width))


@torch.no_grad()
def distance_from_noise(model: Model, pixels: Tensor, labels: Tensor, *, z: Tensor, codec: Codec) -> Tensor:
    """How far the flow carries images from the noise they were sampled from: (N,), 0 for what inverts it exactly.

    The root mean square of F(x) - z over the values of z (N, T, D), in units of the noise's standard deviation, for
    uint8 images x (N, P, H, W) with labels (N,).  Images without the flow's training noise keep some distance.
    """
    chunks, device = [], model.flow.prior_variance.device
    for places in torch.arange(len(pixels)).split(BATCH_SIZE):
        patches = patchify(codec.encode(pixels[places]), model.config.patch_size).to(device)
        landed = model.flow(patches, labels[places].to(device)).z
        missed = (landed - z[places].to(device)) / model.flow.prior_variance.sqrt()
        chunks.append(missed.square().mean(dim=(1, 2)).sqrt().cpu())
    return torch.cat(chunks)
