"""The learned way back: noise -> clean image in one evaluation of the reverse model (BiFlow, arXiv 2512.10953)."""

from dataclasses import replace

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.models.reverse_model import ReverseModel
from biflow.sampling.guidance import NO_GUIDANCE, Guidance
from biflow.sampling.result import Sample


@torch.no_grad()
def sample_in_one_pass(model: ReverseModel, z: Tensor, labels: Tensor, *, guidance: Guidance = NO_GUIDANCE) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> clean patches.

    Trained guidance is part of the one evaluation; otherwise each block runs with and without the label, as one
    doubled batch.
    """
    check_reverse_guidance(guidance, model.num_classes)
    return Sample(model(z, labels, guidance.strength).image, network_calls=1, rounds=1)


def check_reverse_guidance(guidance: Guidance, num_classes: int) -> None:
    """Raise unless the reverse model can follow this guidance: a strength, given classes, and nothing more."""
    if replace(guidance, strength=0.0) != NO_GUIDANCE:
        raise InputError(
            "Expected only a strength of guidance for the reverse model; annealed guidance, guidance on shift or "
            "log-scale alone and temperatures are for the exact inverse."
        )
    guidance.check(num_classes)


@torch.no_grad()
def guess_states(model: ReverseModel, z: Tensor, labels: Tensor, guidance: Guidance = NO_GUIDANCE) -> list[Tensor]:
    """The flow's states[0], states[1] ... below the noise, each (B, T, D), as the heads read them in one pass.

    Only the strength of guidance counts, as far as it was trained; this is a guess.
    """
    strength = guidance.strength
    if model.config.guidance == "trained":
        strength = min(strength, model.config.max_guidance)
    return model.read_states(model(z, labels, strength))
