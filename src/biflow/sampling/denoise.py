"""One step along the score takes the noise off that the flow was trained with."""

import torch
from torch import Tensor

from biflow.errors import check_number
from biflow.models.forward_flow import ForwardFlow


@torch.inference_mode(False)  # it needs gradients wherever it is called
def score_denoise(flow: ForwardFlow, x: Tensor, labels: Tensor, *, step: float = 1.0) -> Tensor:
    """Noisy patches x (B, T, D) -> clean ones: x + step * noise_std**2 * d log p(x) / dx.

    With step 1, Tweedie's formula, as TARFlow denoises its samples (arXiv 2412.06329); no guidance in this step.
    """
    if not step:
        return x.detach()
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (score,) = torch.autograd.grad(flow.log_prob(x, labels.clone()).sum(), x)
    return x.detach() + step * flow.config.noise_std**2 * score


def check_score_step(step: float) -> None:
    """Raise unless this is a share of the noise that can be taken off."""
    check_number(step, "denoise", hint="0 leaves out the score step, 1 takes it whole.")
