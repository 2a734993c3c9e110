"""Muon for many small matrices: PyTorch's own optimiser, with the arithmetic of a step done for all of them at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biflow.training.sharding import spread_like, whole

TOGETHER = 64  # matrices that are stacked, and gathered where they are sharded


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with the same result, except that matrices of one shape are orthogonalised as one batch.

    PyTorch takes one matrix after another, always in bfloat16: on a CPU without instructions for bfloat16 that takes
    longer than the rest of a small model's training step, and on a GPU several kernel launches a matrix.  Here a CPU
    computes in float32.  A matrix made of several on top of each other, such as that of queries, keys and values, is
    orthogonalised part by part; `count_parts` says how many it has.  Matrices that FSDP2 shards are gathered for it.

    The update is scaled by sqrt(max(1, rows / columns)).  Jordan et al., "Muon: An optimizer for hidden layers in
    neural networks", 2024.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        count_parts: Callable[[nn.Parameter], int],
    ) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay)
        self.parts = [count_parts(matrix) for matrix in matrices]
        for matrix in matrices:  # there before the first step, which may be one that is left out
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        (group,) = self.param_groups
        alike: dict[tuple[torch.Size, int], list[Tensor]] = defaultdict(list)
        for matrix, parts in zip(group["params"], self.parts, strict=True):
            if matrix.grad is not None:
                alike[matrix.shape, parts].append(matrix)
        for (_, parts), matrices in alike.items():
            for first in range(0, len(matrices), TOGETHER):
                self._move(matrices[first : first + TOGETHER], parts, group)

    def _move(self, matrices: list[Tensor], parts: int, group: dict[str, Any]) -> None:
        """Move matrices of one shape, each of so many parts on top of each other."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        stacked = torch.stack([whole(direction) for direction in directions])  # (N, rows, columns)
        pieces = stacked.view(len(matrices) * parts, -1, stacked.shape[-1])
        scale = max(1, pieces.shape[1] / pieces.shape[2]) ** 0.5
        updates = (orthogonalise(pieces, group) * scale).view_as(stacked)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        spread = [spread_like(update, matrix) for update, matrix in zip(updates, matrices, strict=True)]
        torch._foreach_add_(matrices, spread, alpha=-group["lr"])


def orthogonalise(matrices: Tensor, settings: dict[str, Any]) -> Tensor:
    """Matrices (N, rows, columns) -> with singular values of about 1, by the iteration of `torch.optim.Muon`."""
    a, b, c = settings["ns_coefficients"]
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
