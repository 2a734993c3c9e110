"""Noise -> images in batches: what every call of a pipeline that samples goes through."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from biflow.data.randomness import normal_for
from biflow.errors import InputError, check_number
from biflow.models.model import Model
from biflow.nn.compilation import compile_layers
from biflow.sampling.captured import CapturedFlow, CapturedReverse, get_or_make
from biflow.sampling.guidance import Guidance
from biflow.sampling.options import SamplingSettings
from biflow.sampling.samplers import Sampler
from biflow.tensors import is_real_tensor

KEPT = 16  # prepared samplers
REDRAWS = 4  # at most, of an image that contains NaN or Inf


class Drawn(NamedTuple):
    """Sampled images, and how many of them contained NaN or Inf."""

    pixels: Tensor  # uint8 (N, P, H, W), on the CPU; NaN and Inf are black
    broken: int  # images that contained NaN or Inf
    left: int  # those of them that still do, after resampling if that was asked for

    def warn(self, *, redraw: bool = False) -> None:
        """Warn if there are any."""
        if self.broken:
            after = f" and were resampled; {self.left} still do" if redraw else ""
            warnings.warn(f"{self.broken} of {len(self.pixels)} images contain NaN or Inf{after}.", stacklevel=3)


class Engine:
    """Samples from a model in one precision, compiled or not; keeps copies, CUDA graphs and prepared samplers."""

    def __init__(
        self, model: Model, *, dtype: torch.dtype = torch.float32, compiled: bool = False, layers: bool = False
    ) -> None:
        self.model, self.dtype, self.compiled, self.layers = model, dtype, compiled, layers
        self.prepared: dict[tuple[Sampler, Guidance], Sampler] = {}
        self._networks: Model | None = None

    def in_precision(self, dtype: torch.dtype) -> "Engine":
        """The same in this precision, with new copies of the networks; what samplers have measured is kept."""
        engine = Engine(self.model, dtype=dtype, compiled=self.compiled, layers=self.layers)
        engine.prepared = self.prepared
        return engine

    def noise(self, indices: Sequence[int], seed: int, attempt: int = 0) -> Tensor:
        """The noise z (N, T, D) of these indices, in the prior's units, after some attempts that gave NaN or Inf."""
        check_number(seed, "seed", whole=True)
        keys = [attempt] if attempt else []
        noise = normal_for(indices, self.model.config.noise_shape, "sample", seed, *keys)
        return self.model.flow.scale_noise(noise.to(self.model.device))

    def sample(self, labels: Tensor, settings: SamplingSettings, *, start: int, redraws: int) -> Drawn:
        """Images of labels (N,) at the indices start, start + 1, ..., each from noise of its own."""
        check_number(start, "start", whole=True)

        def latents_at(rows: Tensor, attempt: int) -> Tensor:
            z = self.noise((start + rows).tolist(), settings.seed, attempt)
            return self.latents(z, labels[rows], settings)

        return self._in_batches(len(labels), settings.batch_size, latents_at, redraws=redraws)

    def decode(self, z: Tensor, labels: Tensor, settings: SamplingSettings) -> Drawn:
        """Images from noise z (N, T, D), in the prior's units, and labels (N,)."""

        wanted = (len(labels), *self.model.config.noise_shape)
        if not is_real_tensor(z, wanted):
            found = tuple(z.shape) if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise InputError(f"Expected noise of shape {wanted}, for the labels, as a tensor; got {found}.")
        z = z.float()

        def latents_at(rows: Tensor, _: int) -> Tensor:
            return self.latents(z[rows.to(z.device)], labels[rows.to(labels.device)], settings)

        return self._in_batches(len(z), settings.batch_size, latents_at)

    def latents(self, z: Tensor, labels: Tensor, settings: SamplingSettings) -> Tensor:
        """Noise z (B, T, D) and labels (B,) -> what the codec decodes, (B, P, H, W)."""
        count, size = len(z), self.size_to_draw(len(z), settings.batch_size)
        z, labels = (
            F.pad(part.to(self.model.device), (0, 0) * (part.ndim - 1) + (0, size - count)) for part in (z, labels)
        )
        sampler = self.prepare(settings.sampler, settings.guidance)
        return self.model.to_latents(sampler(self.networks(), z, labels, settings.guidance).x[:count].float())

    def prepare(self, sampler: Sampler, guidance: Guidance) -> Sampler:
        """The sampler with what it measures of this model, which is measured once."""
        key = (sampler, guidance)
        return get_or_make(self.prepared, key, lambda: sampler.prepare(self.model, guidance), size=KEPT)

    def size_to_draw(self, count: int, batch_size: int) -> int:
        """The batch size for this many images: one of few where each has CUDA graphs of its own."""
        if not self.compiled or self.model.device.type != "cuda":
            return count
        return min(batch_size, 1 << (count - 1).bit_length())

    @torch.inference_mode(False)  # copies that are made in it could not be differentiated later
    def networks(self) -> Model:
        """The networks that sample: in the engine's precision, captured as CUDA graphs if it is compiled."""
        if self._networks is None:
            flow, reverse = self.model.flow, self.model.reverse
            if self.dtype != torch.float32 or self.layers:
                flow, reverse = deepcopy(flow).to(self.dtype), reverse and deepcopy(reverse).to(self.dtype)
            if self.compiled:
                if reverse and self.layers:
                    compile_layers(reverse, self.model.device)
                flow, reverse = CapturedFlow(flow), reverse and CapturedReverse(reverse)
            self._networks = self.model.with_networks(flow, reverse)
        return self._networks

    def _in_batches(
        self, count: int, batch_size: int, latents_at: Callable[[Tensor, int], Tensor], *, redraws: int = 0
    ) -> Drawn:
        """latents_at(rows, attempt) -> images, with up to this many more attempts for those with NaN or Inf."""
        chunks, broken, left = [], 0, 0
        for rows in torch.arange(count).split(batch_size):
            latents = latents_at(rows, 0)
            bad = not_finite(latents)
            broken += int(bad.sum())
            for attempt in range(1, 1 + redraws):
                if bad.any():
                    latents[bad] = latents_at(rows[bad.cpu()], attempt)
                    bad = not_finite(latents)
            left += int(bad.sum())
            chunks.append(self.model.codec.decode(latents).cpu())
        return Drawn(torch.cat(chunks), broken, left)


def not_finite(images: Tensor) -> Tensor:
    """Which images (B, P, H, W) contain NaN or Inf: (B,)."""
    return ~images.isfinite().flatten(1).all(dim=1)
