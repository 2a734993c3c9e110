"""What calling a pipeline takes and returns, with the habits of diffusers."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from biflow.data.images import to_pil
from biflow.errors import InputError, check_number, choose
from biflow.tensors import is_real_tensor

OutputType = Literal["pil", "np", "pt"]
OutputImages = list[Image.Image] | npt.NDArray[np.float32] | Tensor


@dataclass(frozen=True)
class ImagePipelineOutput:
    """What calling a pipeline returns."""

    images: OutputImages


def given_labels(class_labels: Any, null_label: int) -> Any:
    """Labels as diffusers' pipelines take them, one or several or none, as a list or tensor (N,).

    >>> given_labels("cat", 2), given_labels(np.int64(1), 2), given_labels(None, 2)
    (['cat'], [np.int64(1)], [2])
    """
    given = null_label if class_labels is None else class_labels
    if isinstance(given, Tensor | np.ndarray):
        return given.reshape(1) if given.ndim == 0 else given
    return [given] if isinstance(given, Integral | str) else given


def guidance_of(guidance_scale: float | None, num_inference_steps: int) -> float:
    """Our guidance strength for diffusers' guidance scale, where 1 or None is no guidance; raises for other settings.

    >>> guidance_of(1.25, 1), guidance_of(None, 1)
    (0.25, 0.0)
    """
    if num_inference_steps != 1:
        raise InputError(
            f"Expected num_inference_steps=1: the reverse model samples in one pass; got {num_inference_steps}. "
            "For the exact inverse pass method='sequential'."
        )
    scale = 1.0 if guidance_scale is None else guidance_scale
    check_number(scale, "guidance_scale", least=1, hint="1 turns guidance off.")
    return float(scale) - 1


def as_output(pixels: Tensor, output_type: OutputType) -> OutputImages:
    """uint8 (N, P, H, W) as images of this type: "pil", "np" (N, H, W, P) or "pt" (N, P, H, W), in [0, 1]."""
    kinds: dict[OutputType, Callable[[], Any]] = {
        "pil": lambda: [to_pil(image) for image in pixels],
        "np": lambda: (pixels.float() / 255).permute(0, 2, 3, 1).numpy(),
        "pt": lambda: pixels.float() / 255,
    }
    images: OutputImages = choose(kinds, output_type, "output_type")()
    return images


def given_noise(
    shape: tuple[int, int, int], *, seed: int | None, generator: torch.Generator | None, latents: Tensor | None
) -> Tensor | None:
    """Standard normal noise (N, T, D) from a generator or as latents, None from the seed; raises if given several."""
    sources = {"seed": seed, "generator": generator, "latents": latents}
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise InputError(f"Expected noise from one source; got {' and '.join(given)}. Pass one of them.")
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise InputError("Expected one torch.Generator; pass a seed to give each image noise of its own.")
        latents = torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
    if latents is None:
        return None
    if not is_real_tensor(latents, shape) or not latents.isfinite().all():
        found = tuple(latents.shape) if hasattr(latents, "shape") else type(latents).__name__
        raise InputError(f"Expected latents as a tensor of shape {shape} without NaN or Inf; got {found}.")
    return latents
