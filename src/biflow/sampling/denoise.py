"""Score-based denoising: removes the flow's training noise from samples."""

import torch
from torch import Tensor

from biflow.models.forward_flow import ForwardFlow, differentiable


@torch.inference_mode(False)  # needs gradients even in the caller's inference mode
def score_denoise(flow: ForwardFlow, x: Tensor, labels: Tensor, *, step: float = 1.0) -> Tensor:
    """Denoise patches x (B, T, D): x + step * noise_std**2 * d log p(x) / dx; unguided.

    Step 1 is Tweedie's formula, as in TARFlow (arXiv 2412.06329).
    """
    if not step:
        return x.detach()
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (score,) = torch.autograd.grad(differentiable(flow).log_prob(x, labels.clone()).sum(), x)
    return x.detach() + step * flow.config.noise_std**2 * score
