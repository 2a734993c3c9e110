"""One step along the score takes the noise off that the flow was trained with."""

import torch
from torch import Tensor

from biflow.models.forward_flow import ForwardFlow


def score_denoise(flow: ForwardFlow, x: Tensor, labels: Tensor) -> Tensor:
    """Noisy patches x (B, T, D) -> clean ones: x + noise_std**2 * d log p(x) / dx.

    Tweedie's formula, as TARFlow denoises its samples (arXiv 2412.06329); no guidance in this step.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(flow.log_prob(x, labels).sum(), x)
    return x.detach() + flow.config.noise_std**2 * score
