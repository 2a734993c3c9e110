"""The exact inverse of the flow by fixed-point iteration: many patches in one network call.

A block's inverse solves x = shift(x) + exp(log_scale(x)) * z, where each patch depends on those before it only, so
that iterating is exact after as many rounds as there are patches, and near enough long before.  Over the whole
sequence (Jacobi: SeJD, arXiv 2505.24791) or group by group, earlier groups being finished and cached (GS-Jacobi,
arXiv 2505.12849).
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
from biflow.sampling.result import Sample

TOLERANCE = 1e-3
LARGEST_GUESS = 1e4  # keeps an iterate that overshoots from turning into not-a-number, which would spread
CALL_COST = 64.0  # suits single small images on a CPU; a GPU waits for far more patches in the time of a call

Groups = int | Sequence[int] | None
"""Patches in a group: for every block, or one number a block (the block at the data first); None for all patches."""


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
) -> Sample:
    """Noise z (B, T, D) and labels (B,) -> the patches that the flow maps to z, within a tolerance.

    An image's iteration ends when no value in it changes by more than the tolerance (0: not at all).  start: a guess
    of the flow's states[0], states[1] ..., each (B, T, D); each block's own noise otherwise.
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
    return Sample(x, calls, calls, residual)


def solve_block(
    guided: GuidedBlock, z: Tensor, guess: Tensor, caches: Sequence[KVCache], *, tolerance: float, size: int
) -> tuple[Tensor, int, Tensor]:
    """Undo one block by groups of `size` patches: z and a guess of x (B, T, D) -> x, network calls, residual (B,)."""
    z, x = guided.block.reading_order(z), guided.block.reading_order(guess).clone()
    x[:, 0] = z[:, 0]  # the first patch passes through unchanged
    length, calls, residual = z.shape[1], 0, torch.zeros_like(z[:, 0, 0])
    for first in range(1, length, size):
        last = min(first + size, length)
        used = caches if size < length - 1 else None  # nothing to keep where one group is all
        count, change = solve_group(guided, z, x, used, span=(first, last), tolerance=tolerance)
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
    """Iterate the patches of x in this span, in place, given all before it; returns network calls and residual (B,).

    An image that has settled is left as it is while others go on, so that it does not depend on them.
    """
    first, last = span
    settled = torch.zeros_like(z[:, 0, 0], dtype=torch.bool)
    for calls in range(1, last - first + 1):
        rewind(caches or (), first - 1)
        new = restore(z[:, first:last], guided.predict(x[:, first - 1 : last - 1], caches))
        change = (new - x[:, first:last]).abs().amax(dim=(1, 2))
        settled |= change <= tolerance
        if calls == last - first or settled.all():
            break
        overshooting = new[:, calls:].nan_to_num(0.0).clamp(-LARGEST_GUESS, LARGEST_GUESS)
        guess = torch.cat([new[:, :calls], overshooting], dim=1)  # as many patches as rounds are exact by now
        x[:, first:last] = torch.where(settled[:, None, None], x[:, first:last], guess)
    x[:, first:last] = new  # the caches keep the last guess, which is within the tolerance of it, or exact
    return calls, torch.where(settled, change, 0 * change)  # what ran to the end is exact; not-a-number stays


def group_sizes(groups: Groups, num_blocks: int, num_patches: int) -> list[int]:
    """One group size a block, or an error that says which are allowed."""
    whole = max(1, num_patches - 1)
    sizes = [whole if groups is None else groups] * num_blocks if not isinstance(groups, Sequence) else list(groups)
    if len(sizes) != num_blocks:
        raise InputError(f"Expected one group size for each of {num_blocks} blocks; got {len(sizes)}.")
    for size in sizes:
        check_number(size, "the patches in a group", least=1, most=num_patches, whole=True)
    return sizes


def check_tolerance(tolerance: float) -> None:
    """Raise unless this is a distance that an iteration can be asked to reach."""
    check_number(tolerance, "tolerance", hint=f"{TOLERANCE:g} is well below one grey level.")


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
    """The size of groups that undoes each block with the least work, measured on this noise; the data's block first.

    A hard block, whose patches hang on their neighbours, wants small groups; an easy one settles all at once.  Work
    is counted in patches evaluated, where a network call costs `call_cost` patches more than those it evaluates.
    """
    guided = guide(flow, labels, guidance)
    check_tolerance(tolerance)
    x, chosen = z, []
    for level in reversed(range(len(flow.blocks))):
        least, best, undone = math.inf, 0, x
        for size in _candidates(z.shape[1]):
            if math.ceil((z.shape[1] - 1) / size) * (call_cost + size) >= least:
                continue  # one round a group would be too much already
            solved, calls, _ = solve_block(guided.blocks[level], x, x, guided.caches, tolerance=tolerance, size=size)
            work = calls * (call_cost + size)
            if work < least:
                least, best, undone = work, size, solved
        chosen.append(best)
        x = undone
    return tuple(reversed(chosen))


def _candidates(num_patches: int) -> list[int]:
    """All patches at once, then halves of that, down to one by one."""
    sizes = [max(1, num_patches - 1)]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes
