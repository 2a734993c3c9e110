"""Gradient paths for feature alignment of the flow (FlowBack, arXiv 2511.22345, section 4.2).

All paths give the same feature values; they differ in which blocks a loss on the features of block t trains, with
blocks counted from 1 at the data:

    forward              1 ... t     features of the pass that the likelihood is computed from
    detach               t           the block's input is detached
    reverse              t ... S     the block's input is rebuilt from the noise, through the blocks above it
    reverse_literal      t           the paper's algorithm 2 as printed: no loss reads the rebuilt input
    reverse_sequential   t ... S     the input is the exact inverse, patch by patch: slow, the reference for `reverse`

`reverse` rebuilds x[t-1] = shift_t(x[t-1]) + exp(log_scale_t(x[t-1])) * x[t] with the forward pass's x[t-1] in the
network and the rebuilt x[t] outside of it, which keeps the first term of the exact inverse's gradient. Each further
sweep of this fixed point adds a term; with as many sweeps as patches the gradient is exact.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from biflow.models.flow_block import FlowBlock, restore
from biflow.models.forward_flow import FlowPass, ForwardFlow, LayerIndex

Layers = Collection[LayerIndex]
Features = Mapping[LayerIndex, Tensor]
AlignmentPath = Callable[[ForwardFlow, FlowPass, Tensor, Layers], Features]
"""(flow, its forward pass, labels, layers) -> features (B, T, C), in the image's order."""


def forward_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:  # noqa: ARG001
    """Features of the forward pass itself, which must have been called with these layers."""
    return {layer: trajectory.features[layer] for layer in layers}


def detached_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:
    """Features of each block for its detached input."""
    features: dict[LayerIndex, Tensor] = {}
    for number, block_layers in by_block(layers).items():
        block, x = flow.flow_blocks[number - 1], trajectory.states[number - 1].detach()
        features |= numbered(number, block.features(x, block.classes(labels), block_layers))
    return features


def reverse_features(
    flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers, *, sweeps: int = 1
) -> Features:
    """Features of each block for its input rebuilt from the noise, down to the lowest requested block."""
    features: dict[LayerIndex, Tensor] = {}
    x = trajectory.z.detach()
    for number, block, block_layers in downwards(flow, layers):
        value, condition, above = trajectory.states[number - 1].detach(), block.classes(labels), x
        x = value
        for _ in range(sweeps):
            rebuilt = block.invert_once(x, above, condition)
            x = value + (rebuilt - rebuilt.detach())  # straight-through: the value of one, the gradient of the other
        features |= numbered(number, block.features(x, condition, block_layers))
    return features


def literal_reverse_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:
    """Algorithm 2 as printed: every block down to the lowest on its detached input; no loss reads the rebuilt one."""
    features: dict[LayerIndex, Tensor] = {}
    for number, block, block_layers in downwards(flow, layers):
        outputs = block(trajectory.states[number - 1].detach(), block.classes(labels), block_layers)
        features |= numbered(number, outputs.features)
    return features


def sequential_reverse_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:
    """Features of each block for the exact inverse of the noise, patch by patch, with the full gradient."""
    features: dict[LayerIndex, Tensor] = {}
    x = trajectory.z.detach()
    for number, block, block_layers in downwards(flow, layers):
        condition = block.classes(labels)
        x = invert_block_sequentially(block, x, condition)
        features |= numbered(number, block.features(x, condition, block_layers))
    return features


def invert_block_sequentially(block: FlowBlock, z: Tensor, condition: Tensor) -> Tensor:
    """Differentiable exact inverse of one block, z (B, T, D) -> x (B, T, D); no cache: each patch reruns its prefix."""
    z = block.reading_order(z)
    x = z[:, :1]
    for t in range(1, z.shape[1]):
        affine = block.predict(x, condition)
        patch = restore(z[:, t : t + 1], type(affine)(*(part[:, -1:] for part in affine)))
        x = torch.cat([x, patch], dim=1)
    return block.reading_order(x)


def by_block(layers: Layers) -> dict[int, list[int]]:
    """Group (block, layer) pairs by block."""
    return {block: [layer for number, layer in layers if number == block] for block, _ in layers}


def downwards(flow: ForwardFlow, layers: Layers) -> Iterator[tuple[int, FlowBlock, list[int]]]:
    """The blocks from the noise down to the lowest requested one: number, block and requested layers of each."""
    layers_of = by_block(layers)
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        yield number, flow.flow_blocks[number - 1], layers_of.get(number, [])


def numbered(number: int, outputs: Mapping[int, Tensor]) -> dict[LayerIndex, Tensor]:
    """Outputs by layer -> by (block, layer)."""
    return {(number, layer): output for layer, output in outputs.items()}


ALIGNMENT_PATHS: Mapping[str, AlignmentPath] = {
    "forward": forward_features,
    "detach": detached_features,
    "reverse": reverse_features,
    "reverse_literal": literal_reverse_features,
    "reverse_sequential": sequential_reverse_features,
}
