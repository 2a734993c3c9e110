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
from biflow.sampling.jacobi import LARGEST_GUESS, TOLERANCE
from biflow.sampling.result import SamplerOutput


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
    """Invert the flow within a tolerance, all blocks at once: noise z (B, T, D) and labels (B,) -> patches.

    start: initial guess of the flow's states[0], states[1], ..., each (B, T, D). A block is done with an image when the
    next block towards the noise is, and no value changes by more than the tolerance (0: not at all). Blocks that are
    done with all images are skipped. Exact after at most as many rounds as `invert_sequentially` takes calls.
    """
    blocks = guide(flow, labels, guidance).blocks
    levels = len(flow.blocks)
    if len(start) != levels:
        raise InputError(f"Expected a guess for each of {levels} blocks; got {len(start)}.")
    states = [*start, z]
    converged = [torch.zeros_like(labels).bool() for _ in range(levels)] + [torch.ones_like(labels).bool()]
    residual = torch.zeros_like(z[:, 0, 0])
    active, calls, rounds = levels, 0, 0  # blocks from `active` on are done
    while active and rounds < levels * (z.shape[1] - 1):
        new = [update(blocks[i], states[i], states[i + 1]) for i in range(active)]
        changes = [(after - before).abs().amax(dim=(1, 2)) for after, before in zip(new, states, strict=False)]
        rounds, calls = rounds + 1, calls + active
        for i in reversed(range(active)):
            done = converged[i + 1] & (changes[i] <= tolerance)
            residual = torch.where(done & ~converged[i], torch.maximum(residual, changes[i]), residual)
            states[i] = torch.where(converged[i][:, None, None], states[i], new[i])
            converged[i] = converged[i] | done
        while active and converged[active - 1].all():
            active -= 1
    return SamplerOutput(states[0], calls, rounds, residual)


def update(guided: GuidedBlock, x: Tensor, z: Tensor) -> Tensor:
    """One fixed-point iteration of a block: a guess of its input x and its output z, both (B, T, D) -> a new x."""
    x, z = guided.block.reading_order(x), guided.block.reading_order(z)
    first = z[:, :1]  # passes through unchanged
    following = restore(z[:, 1:], guided.predict(torch.cat([first, x[:, 1:-1]], dim=1)))
    guess = torch.cat([first, following], dim=1)
    return guided.block.reading_order(guess.nan_to_num(0.0).clamp(-LARGEST_GUESS, LARGEST_GUESS))
