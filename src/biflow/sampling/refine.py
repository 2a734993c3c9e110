"""The exact inverse of the flow for all blocks at once, started from a guess of every state.

Undoing block i solves x[i] = shift(x[i]) + exp(log_scale(x[i])) * x[i + 1].  Block after block, that takes rounds of
fixed-point iteration for each; but with a guess of every state at hand, all blocks can be corrected in the same round,
each from its current neighbour, and the rounds of different blocks overlap.  The heads of a reverse model guess.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.errors import InputError
from biflow.models.flow_block import restore
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, GuidedBlock, guide
from biflow.sampling.jacobi import LARGEST_GUESS, TOLERANCE, check_tolerance
from biflow.sampling.result import Sample


@torch.no_grad()
def refine(
    flow: ForwardFlow,
    z: Tensor,
    labels: Tensor,
    *,
    start: Sequence[Tensor],
    guidance: Guidance = NO_GUIDANCE,
    tolerance: float = TOLERANCE,
) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> the patches that the flow maps to z, within a tolerance.

    start: a guess of the flow's states[0], states[1] ..., each (B, T, D).  A block is done with an image when the block
    next to the noise is and no value changes by more than the tolerance (0: not at all); a block that is done with all
    images is left out of later rounds.  Exact after as many rounds as `invert_sequentially` takes calls, at the latest.
    `network_calls` counts evaluations of blocks, `rounds` those that must follow one another.
    """
    blocks = guide(flow, labels, guidance).blocks
    check_tolerance(tolerance)
    levels = len(flow.blocks)
    if len(start) != levels:
        raise InputError(f"Expected a guess for each of {levels} blocks; got {len(start)}.")
    states = [*start, z]
    settled = [torch.zeros_like(z[:, 0, 0], dtype=torch.bool) for _ in range(levels)] + [torch.ones_like(labels).bool()]
    residual = torch.zeros_like(z[:, 0, 0])
    active, calls, rounds = levels, 0, 0  # blocks from `active` on are done
    while active and rounds < levels * (z.shape[1] - 1):
        new = [update(blocks[i], states[i], states[i + 1]) for i in range(active)]
        changes = [(after - before).abs().amax(dim=(1, 2)) for after, before in zip(new, states, strict=False)]
        rounds, calls = rounds + 1, calls + active
        for i in reversed(range(active)):
            done = settled[i + 1] & (changes[i] <= tolerance)
            residual = torch.where(done & ~settled[i], torch.maximum(residual, changes[i]), residual)
            states[i] = torch.where(settled[i][:, None, None], states[i], new[i])
            settled[i] = settled[i] | done
        while active and settled[active - 1].all():
            active -= 1
    return Sample(states[0], calls, rounds, residual)


def update(guided: GuidedBlock, x: Tensor, z: Tensor) -> Tensor:
    """One round for one block: a guess of its input x (B, T, D) and its output z (B, T, D) -> a better guess of x."""
    x, z = guided.block.reading_order(x), guided.block.reading_order(z)
    first = z[:, :1]  # passes through unchanged
    following = restore(z[:, 1:], guided.predict(torch.cat([first, x[:, 1:-1]], dim=1)))
    guess = torch.cat([first, following], dim=1)
    return guided.block.reading_order(guess.nan_to_num(0.0).clamp(-LARGEST_GUESS, LARGEST_GUESS))
