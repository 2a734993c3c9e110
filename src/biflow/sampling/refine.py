"""The exact inverse of the flow for all blocks at once, starting from a guess of every state.

Inverting block i solves x[i] = shift(x[i]) + exp(log_scale(x[i])) * x[i + 1] by fixed-point iteration. Given a guess of
every state, from the heads of a reverse model, all blocks iterate in the same round, each from its current neighbour.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.models.flow_block import restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, GuidedBlock, guide
from biflow.sampling.jacobi import TOLERANCE, bounded
from biflow.sampling.result import SamplerOutput, zero_if_finite


@torch.no_grad()
def refine(
    flow: ForwardFlow,
    z: Tensor,
    labels: Tensor,
    *,
    start: Sequence[Tensor],
    guidance: Guidance = NO_GUIDANCE,
    tolerance: float = TOLERANCE,
) -> SamplerOutput:
    """Invert the flow, all blocks at once: noise z (B, T, D) and labels (B,) -> patches.

    start: initial guess of the flow's states[0], states[1], ..., each (B, T, D). A block is done with an image when the
    next block towards the noise is, and no value changes by more than the tolerance (0: not at all). Blocks that are
    done with all images are skipped. Exact after at most as many rounds as `invert_sequentially` takes calls.
    """
    blocks = guide(flow, labels, guidance).blocks
    levels, steps = len(flow.blocks), max(1, z.shape[1] - 1)  # a block is exact `steps` rounds after the next one
    if len(start) != levels:
        raise InputError(f"Expected a guess for each of {levels} blocks; got {len(start)}.")
    states, residual = [*(bounded(each, exact=0) for each in start), z], torch.zeros_like(z[:, 0, 0])
    converged = [torch.zeros_like(labels).bool() for _ in range(levels)] + [torch.ones_like(labels).bool()]
    active, calls, rounds = levels, 0, 0  # blocks from `active` on are done
    while active and rounds < levels * steps:
        new = [update(blocks[i], states[i], states[i + 1]) for i in range(active)]
        rounds, calls = rounds + 1, calls + active
        for i in reversed(range(active)):
            change = (new[i] - states[i]).abs().amax(dim=(1, 2))
            done = converged[i + 1] & (change <= tolerance)
            residual = torch.where(done & ~converged[i], torch.maximum(residual, change), residual)
            order, exact = blocks[i].block.reading_order, rounds - (levels - 1 - i) * steps
            guess = order(bounded(order(new[i]), exact=exact + 1 if exact > 0 else 0))
            states[i] = torch.where(converged[i][:, None, None], states[i], guess)
            converged[i] = converged[i] | done
        while active and converged[active - 1].all():
            active -= 1
    x = states[0]
    return SamplerOutput(x, calls, rounds, residual + zero_if_finite(x))  # after all rounds it is exact


def update(guided: GuidedBlock, x: Tensor, z: Tensor) -> Tensor:
    """One fixed-point iteration of a block: a guess of its input x and its output z, both (B, T, D) -> a new x."""
    x, z = guided.block.reading_order(x), guided.block.reading_order(z)
    first = z[:, :1]  # passes through unchanged
    following = restore(z[:, 1:], guided.predict(torch.cat([first, x[:, 1:-1]], dim=1)))
    return guided.block.reading_order(torch.cat([first, following], dim=1))
