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

from collections.abc import Callable, Collection, Mapping

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
        block = flow.flow_blocks[number - 1]
        outputs = block.features(trajectory.states[number - 1].detach(), block.classes(labels), block_layers)
        features |= {(number, layer): output for layer, output in outputs.items()}
    return features


def reverse_features(
    flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers, *, sweeps: int = 1
) -> Features:
    """Features of each block for its input rebuilt from the noise, down to the lowest requested block."""
    layers_of = by_block(layers)
    features: dict[LayerIndex, Tensor] = {}
    x = trajectory.z.detach()
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block, value = flow.flow_blocks[number - 1], trajectory.states[number - 1].detach()
        condition, above = block.classes(labels), x
        x = value
        for _ in range(sweeps):
            rebuilt = block.invert_once(x, above, condition)
            x = value + (rebuilt - rebuilt.detach())  # straight-through: the value of one, the gradient of the other
        outputs = block.features(x, condition, layers_of.get(number, ()))
        features |= {(number, layer): output for layer, output in outputs.items()}
    return features


def literal_reverse_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:
    """Algorithm 2 as printed: evaluate every block down to the lowest once, on its detached input.

    The input that it rebuilds from the noise is not used by any loss, and left out here.
    """
    layers_of = by_block(layers)
    features: dict[LayerIndex, Tensor] = {}
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block = flow.flow_blocks[number - 1]
        outputs = block(trajectory.states[number - 1].detach(), block.classes(labels), layers_of.get(number, ()))
        features |= {(number, layer): output for layer, output in outputs.features.items()}
    return features


def sequential_reverse_features(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, layers: Layers) -> Features:
    """Features of each block for the exact inverse of the noise, patch by patch, with the full gradient."""
    layers_of = by_block(layers)
    features: dict[LayerIndex, Tensor] = {}
    x = trajectory.z.detach()
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block = flow.flow_blocks[number - 1]
        condition = block.classes(labels)
        x = invert_block_sequentially(block, x, condition)
        outputs = block.features(x, condition, layers_of.get(number, ()))
        features |= {(number, layer): output for layer, output in outputs.items()}
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
    grouped: dict[int, list[int]] = {}
    for block, layer in layers:
        grouped.setdefault(block, []).append(layer)
    return grouped


ALIGNMENT_PATHS: Mapping[str, AlignmentPath] = {
    "forward": forward_features,
    "detach": detached_features,
    "reverse": reverse_features,
    "reverse_literal": literal_reverse_features,
    "reverse_sequential": sequential_reverse_features,
}
