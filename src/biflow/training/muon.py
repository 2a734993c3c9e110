"""Muon with the matrices of one shape batched."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biflow.training.sharding import full_tensor, shard_like

MAX_BATCH = 64  # matrices that are gathered and stacked at a time


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, orthogonalising all matrices of one shape as one batch, in float32 on a CPU.

    PyTorch does one matrix at a time in bfloat16, which is slow without bfloat16 instructions and takes several kernel
    launches on a GPU. Stacked matrices, such as queries, keys and values, are orthogonalised separately; `count_parts`
    gives their number. Matrices sharded by FSDP2 are gathered. The update is scaled by sqrt(max(1, rows / columns)).
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
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
        for matrix in matrices:  # before the first step, which may be skipped
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        (group,) = self.param_groups
        by_shape: dict[tuple[torch.Size, int], list[Tensor]] = defaultdict(list)
        for matrix, parts in zip(group["params"], self.parts, strict=True):
            if matrix.grad is not None:
                by_shape[matrix.shape, parts].append(matrix)
        for (_, parts), matrices in by_shape.items():
            for first in range(0, len(matrices), MAX_BATCH):
                self._update(matrices[first : first + MAX_BATCH], parts, group)

    def _update(self, matrices: list[Tensor], parts: int, group: dict[str, Any]) -> None:
        """Update matrices of one shape, each a stack of `parts` matrices."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        stacked = torch.stack([full_tensor(direction) for direction in directions])  # (N, rows, columns)
        pieces = stacked.view(len(matrices) * parts, -1, stacked.shape[-1])
        scale = max(1, pieces.shape[1] / pieces.shape[2]) ** 0.5
        updates = (orthogonalise(pieces, group) * scale).view_as(stacked)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        sharded = [shard_like(update, matrix) for update, matrix in zip(updates, matrices, strict=True)]
        torch._foreach_add_(matrices, sharded, alpha=-group["lr"])


def orthogonalise(matrices: Tensor, settings: dict[str, Any]) -> Tensor:
    """Newton-Schulz iteration of `torch.optim.Muon`: (N, rows, columns) with singular values brought near 1."""
    a, b, c = settings["ns_coefficients"]
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
