"""The learned way back: noise -> clean image in one evaluation of the reverse model (BiFlow, arXiv 2512.10953)."""

import warnings

import torch
from torch import Tensor

from biflow.models.reverse_model import ReverseModel
from biflow.sampling.guidance import check_guidance
from biflow.sampling.result import Sample


@torch.no_grad()
def sample_in_one_pass(model: ReverseModel, z: Tensor, labels: Tensor, *, guidance: float = 0.0) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> clean patches.

    Trained guidance is part of the one evaluation; otherwise each block runs with and without the label, as one
    doubled batch.  Warns of a strength beyond those trained with.
    """
    check_guidance(guidance)
    most = model.config.max_guidance
    if model.config.guidance == "trained" and guidance > most:
        warnings.warn(
            f"Guidance {guidance:g} is beyond the range this model was trained with, 0 to {most:g}.", stacklevel=2
        )
    image = model(z, labels, guidance).image
    return Sample(image, network_calls=1, residual=0.0)
