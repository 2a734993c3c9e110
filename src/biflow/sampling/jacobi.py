"""The exact inverse of the flow by fixed-point iteration, many patches per network call.

A block's inverse solves x = shift(x) + exp(log_scale(x)) * z. Each patch depends only on those before it, so the
iteration is exact after as many rounds as patches, and usually converges much sooner. It runs over the whole sequence
(Jacobi: SeJD, arXiv 2505.24791) or group by group with earlier groups cached (GS-Jacobi, arXiv 2505.12849).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from biflow.errors import InputError, check_number
from biflow.models.flow_block import restore
from biflow.models.forward_flow import ForwardFlow
from biflow.nn.attention import KVCache
from biflow.sampling.guidance import NO_GUIDANCE, Guidance, GuidedBlock, guide, rewind
from biflow.sampling.result import SamplerOutput, zero_if_finite

TOLERANCE = 1e-4
LARGEST_GUESS = 1e4  # bounds iterates that overshoot, since NaN would spread
CALL_COST = 64.0  # for single small images on a CPU; a GPU evaluates far more patches in the overhead of a call

Groups = int | Sequence[int] | None
"""Patches per group, for all blocks or one per block (data side first); None for all patches at once."""


@torch.no_grad()
def invert_by_jacobi(
    flow: ForwardFlow,
    z: Tensor,
    labels: Tensor,
    *,
    guidance: Guidance = NO_GUIDANCE,
    tolerance: float = TOLERANCE,
    start: Sequence[Tensor] | None = None,
    groups: Groups = None,
) -> SamplerOutput:
    """Invert the flow: noise z (B, T, D) and labels (B,) -> patches.

    A block is done with an image when no value changes by more than the tolerance (0: not at all). The tolerance bounds
    this last change and not the error: blocks nearer the data magnify what is left, in trained flows 3 to 8 times.
    start: initial guess of the flow's states[0], states[1], ..., each (B, T, D); defaults to each block's output.
    """
    guided = guide(flow, labels, guidance)
    check_tolerance(tolerance)
    sizes = group_sizes(groups, len(flow.blocks), z.shape[1])
    if start is not None and len(start) != len(flow.blocks):
        raise InputError(f"Expected a guess for each of {len(flow.blocks)} blocks; got {len(start)}.")
    x, calls, residual = z, 0, torch.zeros_like(z[:, 0, 0])
    for level in reversed(range(len(flow.blocks))):
        block, guess = guided.blocks[level], start[level] if start is not None else x
        x, block_calls, change = solve_block(block, x, guess, guided.caches, tolerance=tolerance, size=sizes[level])
        calls, residual = calls + block_calls, torch.maximum(residual, change)
    return SamplerOutput(x, calls, calls, residual + zero_if_finite(x))


def solve_block(
    guided: GuidedBlock, z: Tensor, guess: Tensor, caches: Sequence[KVCache], *, tolerance: float, size: int
) -> tuple[Tensor, int, Tensor]:
    """Invert a block in groups of `size` patches: z and a guess of x (B, T, D) -> x, network calls, residual (B,)."""
    z, x = guided.block.reading_order(z), bounded(guided.block.reading_order(guess), exact=0)
    x[:, 0] = z[:, 0]  # the first patch passes through unchanged
    length, calls, residual = z.shape[1], 0, torch.zeros_like(z[:, 0, 0])
    for first in range(1, length, size):
        last = min(first + size, length)
        group_caches = caches if size < length - 1 else None  # a single group needs no cache
        count, change = solve_group(guided, z, x, group_caches, span=(first, last), tolerance=tolerance)
        calls, residual = calls + count, torch.maximum(residual, change)
    return guided.block.reading_order(x), calls, residual


def solve_group(
    guided: GuidedBlock,
    z: Tensor,
    x: Tensor,
    caches: Sequence[KVCache] | None,
    *,
    span: tuple[int, int],
    tolerance: float,
) -> tuple[int, Tensor]:
    """Iterate the patches of x in this span in place, given all before it; returns network calls and residual (B,).

    Converged images are frozen while others iterate, so that results do not depend on the batch.
    """
    first, last = span
    converged = torch.zeros_like(z[:, 0, 0], dtype=torch.bool)
    for calls in range(1, last - first + 1):
        rewind(caches or (), first - 1)
        new = restore(z[:, first:last], guided.predict(x[:, first - 1 : last - 1], caches))
        change = (new - x[:, first:last]).abs().amax(dim=(1, 2))
        converged |= change <= tolerance
        if calls == last - first or converged.all():
            break
        guess = bounded(new, exact=calls)
        x[:, first:last] = torch.where(converged[:, None, None], x[:, first:last], guess)
    x[:, first:last] = new  # the caches hold the last guess, which is exact or within the tolerance of it
    return calls, torch.where(converged, change, 0.0)  # after all rounds it is exact


def bounded(guess: Tensor, *, exact: int) -> Tensor:
    """A guess (B, t, D) without NaN and overflow, which would spread; its first `exact` patches are no guess."""
    rest = guess[:, exact:].nan_to_num(0.0).clamp(-LARGEST_GUESS, LARGEST_GUESS)
    return torch.cat([guess[:, :exact], rest], dim=1)


def group_sizes(groups: Groups, num_blocks: int, num_patches: int) -> list[int]:
    """One group size per block; raise if they are invalid."""
    same = max(1, num_patches - 1) if groups is None else groups
    sizes = list(same) if isinstance(same, Sequence) else [same] * num_blocks
    if len(sizes) != num_blocks:
        raise InputError(
            f"Expected one group size for each of {num_blocks} blocks; got {len(sizes)}. "
            "Give one number to use it for all."
        )
    for size in sizes:
        check_number(size, "the group size", least=1, most=num_patches, whole=True)
    return sizes


def check_tolerance(tolerance: float) -> None:
    """Raise unless the tolerance is valid."""
    check_number(tolerance, "tolerance", hint=f"The default is {TOLERANCE:g}; one grey level is 8e-3.")


@torch.no_grad()
def measure_groups(
    flow: ForwardFlow,
    z: Tensor,
    labels: Tensor,
    *,
    guidance: Guidance = NO_GUIDANCE,
    tolerance: float = TOLERANCE,
    call_cost: float = CALL_COST,
) -> tuple[int, ...]:
    """Choose the group size of each block that needs the least work on this noise; data side first.

    Blocks with strong dependencies between neighbouring patches need small groups, others converge all at once. Work
    counts the patches evaluated plus `call_cost` patches of overhead per network call.
    """
    guided = guide(flow, labels, guidance)
    x, chosen, whole = z, [], max(1, z.shape[1] - 1)
    for level in reversed(range(len(flow.blocks))):
        least, best, inverse = math.inf, 0, x
        for size in (whole >> i for i in range(whole.bit_length())):  # halved down to one
            if math.ceil((z.shape[1] - 1) / size) * (call_cost + size) >= least:
                continue  # even one round per group would cost more
            solved, calls, _ = solve_block(guided.blocks[level], x, x, guided.caches, tolerance=tolerance, size=size)
            work = calls * (call_cost + size)
            if work < least:
                least, best, inverse = work, size, solved
        chosen.append(best)
        x = inverse
    return tuple(reversed(chosen))
