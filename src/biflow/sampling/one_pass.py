"""One-pass sampling: noise -> clean image in one evaluation of the reverse model (BiFlow, arXiv 2512.10953)."""

from dataclasses import replace

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.models.reverse_model import ReverseModel
from biflow.sampling.guidance import NO_GUIDANCE, Guidance
from biflow.sampling.result import SamplerOutput


@torch.no_grad()
def sample_in_one_pass(
    model: ReverseModel, z: Tensor, labels: Tensor, *, guidance: Guidance = NO_GUIDANCE
) -> SamplerOutput:
    """Sample in a single forward pass: noise z (B, T, D) and labels (B,) -> clean patches (B, T, D).

    Trained guidance needs no extra evaluation; two-pass guidance runs each block on a doubled batch.
    """
    check_reverse_guidance(guidance, model)
    return SamplerOutput(model(z, labels, guidance.strength, guidance.denoise).image, network_calls=1, rounds=1)


def check_reverse_guidance(guidance: Guidance, model: ReverseModel) -> None:
    """Raise unless the guidance is only strengths, and the reverse model has classes if they are not 0."""
    if replace(guidance, strength=0.0, denoise=None) != NO_GUIDANCE:
        raise InputError(
            "Expected only a guidance strength for the reverse model; annealed guidance, guidance on shift or "
            "log-scale alone and temperatures are for the exact inverse. Choose method sequential."
        )
    if guidance.denoise is not None and model.denoise is None:
        raise InputError(
            f"Expected guidance without denoise={guidance.denoise:g}: this reverse model has no denoising block. "
            "Leave it out."
        )
    Guidance(max(guidance.strength, guidance.denoise or 0.0)).check(model.num_classes)


@torch.no_grad()
def guess_states(model: ReverseModel, z: Tensor, labels: Tensor, guidance: Guidance = NO_GUIDANCE) -> list[Tensor]:
    """Predict the flow's states[0], states[1], ..., each (B, T, D), in one pass; caps the strength as trained."""
    strength = guidance.strength
    if model.config.guidance == "trained":
        strength = min(strength, model.config.max_guidance)
    return model.read_states(model(z, labels, strength))
