"""Training-free editing: encode images to noise, edit the noise, decode (BiFlow, arXiv 2512.10953).

The flow models noisy images, so images get its training noise before encoding; the reverse model, or the score step
after an exact inverse, removes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from biflow.data.images import to_pil
from biflow.data.labels import Labels
from biflow.data.randomness import content_keys, normal_for
from biflow.errors import InputError, check_choice, check_number
from biflow.models.model import Model

BATCH_SIZE = 128
GREY = 128

Start = Literal["draw", "grey"]


class Edited(NamedTuple):
    """Edited images: M results for each of N images."""

    pixels: Tensor  # uint8 (N, M, P, H, W), on the CPU
    nats: Tensor | None = None  # (N, M), log-density of each result with training noise, if results are ranked

    def images(self, index: int = 0) -> list[Image.Image]:
        """The results for the image at this index, as PIL images."""
        return [to_pil(each) for each in self.pixels[index]]


def mask_patches(mask: Tensor, patches_per_side: int) -> Tensor:
    """Patches that a pixel mask (N, 1, H, W) touches: bool (N, T), in raster order; also for patches of latents.

    >>> mask_patches(torch.tensor([[[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]], dtype=torch.bool), 2)
    tensor([[ True, False, False,  True]])
    """
    return F.max_pool2d(mask.float(), mask.shape[-1] // patches_per_side).flatten(1).bool()


def swap_noise(z: Tensor, fresh: Tensor, masked: Tensor) -> Tensor:
    """Replace the noise z of masked (N, T) patches by fresh noise, both (N, T, D) (BiFlow, eq. 6)."""
    return torch.where(masked[..., None], fresh, z)


def mix_noise(z: Tensor, fresh: Tensor, strength: float) -> Tensor:
    """Noise near z: sqrt(1 - s^2) z + s eps, which keeps the prior's variance for every strength s in [0, 1]."""
    return (1 - strength**2) ** 0.5 * z + strength * fresh


def slerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Spherical interpolation from first (share 0) to last (share 1), both (N, T, D) with unit variance.

    Linear interpolation would pass through noise of too small a norm (White, arXiv 1609.04468, section 2.1).
    """
    a, b = first.flatten(1), last.flatten(1)
    angle = F.cosine_similarity(a, b).clamp(-1, 1).acos()[:, None, None]  # (N, 1, 1)
    parallel = angle.sin() < 1e-4
    safe = torch.where(parallel, 1.0, angle)
    weights = [torch.where(parallel, part, (part * safe).sin() / safe.sin()) for part in (1 - share, share)]
    return weights[0] * first + weights[1] * last


def steps_between(steps: int) -> list[float]:
    """Interpolation weights from 0 to 1, both ends included.

    >>> steps_between(3)
    [0.0, 0.5, 1.0]
    """
    check_number(steps, "steps", least=2, whole=True, hint="They include both ends.")
    return [i / (int(steps) - 1) for i in range(steps)]


def label_pair(labels: tuple[Labels, Labels] | None) -> tuple[Labels | None, Labels | None]:
    """The labels of the first and of the last images; raises unless they are two.

    >>> label_pair(([3], [8])), label_pair(None)
    (([3], [8]), (None, None))
    """
    if labels is None:
        return None, None
    if not isinstance(labels, Sequence | Tensor) or isinstance(labels, str) or len(labels) != 2:
        raise InputError(f"Expected labels as a pair, of the first and of the last images; got {labels!r}.")
    return labels[0], labels[1]


@dataclass(frozen=True)
class Editor:
    """Edits images with a model: uint8 images (N, P, H, W), labels (N,), noise z (N, T, D) in the prior's units.

    All noise depends on the seed and the image's own values, so results do not depend on the batch.
    """

    model: Model
    decode: Callable[[Tensor, Tensor], Tensor]  # z, labels -> images
    seed: int

    @torch.no_grad()
    def encode(self, pixels: Tensor, labels: Tensor, keys: Sequence[int] | None = None) -> Tensor:
        """Add training noise, drawn for one key per image, and map to z = F(x | y) on the flow's device."""
        return torch.cat([self.model.flow(*part).z for part in self._noisy(pixels, labels, keys)])

    @torch.no_grad()
    def log_prob(self, pixels: Tensor, labels: Tensor, keys: Sequence[int]) -> Tensor:
        """Log-density of images with the noise of these keys: (N,) in nats, float64, on the CPU."""
        parts = self._noisy(pixels, labels, keys)
        return torch.cat([self.model.flow.log_prob(*part).double().cpu() for part in parts])

    def fresh(self, keys: Sequence[int], edit: str, index: int) -> Tensor:
        """One sample of the prior per image, on the flow's device."""
        variance = self.model.flow.prior_variance
        noise = normal_for(keys, tuple(variance.shape), edit, self.seed, index)
        return self.model.flow.scale_noise(noise.to(variance))

    def reconstruct(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Encode and decode: x' = G(F(x | y) | y)."""
        return self.decode(self.encode(pixels, labels), labels)

    def reclass(self, pixels: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Decode the same noise under other labels: x' = G(F(x | y1) | y2) (BiFlow)."""
        return self.decode(self.encode(pixels, labels), targets)

    def interpolate(self, ends: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], *, steps: int) -> Edited:
        """Interpolate spherically between the noises of N image pairs; both ends are reconstructions.

        The label is that of the nearer end, at the midpoint that of the last.
        """
        if len(ends[0]) != len(ends[1]):
            raise InputError(
                f"Expected as many last images as first images; got {len(ends[1])} for {len(ends[0])}. Give pairs."
            )
        weights, std = steps_between(steps), self.model.flow.prior_variance.sqrt()
        first, last = (self.encode(each, label) / std for each, label in zip(ends, labels, strict=True))
        images = [self.decode(slerp(first, last, weight) * std, labels[weight >= 0.5]) for weight in weights]
        return Edited(torch.stack(images, dim=1))

    def vary(self, pixels: Tensor, labels: Tensor, *, strength: float, num: int) -> Edited:
        """Decode noise near that of the images; strength 0 reconstructs, 1 samples the class."""
        check_number(strength, "strength", most=1)
        check_number(num, "num", least=1, whole=True)
        z, keys = self.encode(pixels, labels), content_keys(pixels)
        images = [self.decode(mix_noise(z, self.fresh(keys, "vary", i), strength), labels) for i in range(num)]
        return Edited(torch.stack(images, dim=1))

    def inpaint(
        self, pixels: Tensor, labels: Tensor, mask: Tensor, *, proposals: int, rounds: int, start: Start, paste: bool
    ) -> Edited:
        """Resample the masked region, mask (N, 1, H, W); results are ranked by log-likelihood, most likely first.

        Each proposal has its own fresh noise. The noise of known patches depends on the content of the masked region,
        which is first a decoding of the fresh noise ("draw") or grey, then the result of the previous round. The
        original's masked pixels are never read. paste: put the known pixels back.
        """
        check_number(proposals, "proposals", least=1, whole=True)
        check_number(rounds, "rounds", least=1, whole=True)
        check_choice(start, get_args(Start), "start")
        pixels, side = torch.where(mask, GREY, pixels), self.model.config.image_size // self.model.config.patch_size
        keys, masked = content_keys(pixels), mask_patches(mask, side).to(self.model.device)

        def propose(fresh: Tensor) -> Tensor:
            image = self.decode(fresh, labels) if start == "draw" else pixels
            for _ in range(rounds):
                z = self.encode(torch.where(mask, image, pixels), labels, keys)
                image = self.decode(swap_noise(z, fresh, masked), labels)
            return torch.where(mask, image, pixels) if paste else image

        images = [propose(self.fresh(keys, "inpaint", i)) for i in range(proposals)]
        nats = [self.log_prob(each, labels, keys) for each in images]
        return ranked(torch.stack(images, dim=1), torch.stack(nats, dim=1))

    def _noisy(self, pixels: Tensor, labels: Tensor, keys: Sequence[int] | None) -> list[tuple[Tensor, Tensor]]:
        """Batches of noisy patches and labels, on the flow's device."""
        keys = content_keys(pixels) if keys is None else keys
        batches = []
        for rows in torch.arange(len(pixels)).split(BATCH_SIZE):
            patches = self.model.noisy_patches(pixels[rows], [keys[row] for row in rows], "edit", self.seed)
            batches.append((patches, labels[rows].to(self.model.device)))
        return batches


def ranked(pixels: Tensor, nats: Tensor) -> Edited:
    """Sort results (N, M, P, H, W) by their log-densities (N, M), highest first, NaN last."""
    order = nats.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(pixels))[:, None]
    return Edited(pixels[rows, order], nats[rows, order])
