"""The ways to take features out of a flow so that a loss on them trains it (FlowBack, arXiv 2511.22345, section 4.2).

All ways give features of the same value; they differ in which blocks a loss on the features of block t reaches, with
blocks counted from 1 at the data:

    forward              1 ... t     the features of the pass that the likelihood is computed from
    detach               t           the block's input is taken as given
    reverse              t ... S     the block's input is rebuilt from the noise, through the blocks above it
    reverse_literal      t           the paper's algorithm 2 as printed: the rebuilt input is read by no loss
    reverse_sequential   t ... S     the input is the exact inverse, patch by patch: slow, the reference for `reverse`

`reverse` rebuilds x[t-1] = shift_t(x[t-1]) + exp(log_scale_t(x[t-1])) * x[t] with the values of the forward pass in
the network and the rebuilt x[t] outside, which keeps the first term of the gradient of the exact inverse; more `sweeps`
of this fixed point keep more terms, all of them with as many sweeps as patches.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from biflow.models.flow_block import FlowBlock, restore
from biflow.models.forward_flow import FlowPass, ForwardFlow, Place

Features = Mapping[Place, Tensor]
Way = Callable[[ForwardFlow, FlowPass, Tensor, Collection[Place]], Features]
"""(flow, its pass, labels, places) -> features (B, T, C), in the image's order."""


def detached(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, places: Collection[Place]) -> Features:
    """Features of each block for its input as given."""
    found: dict[Place, Tensor] = {}
    for number, layers in by_block(places).items():
        block = flow.flow_blocks[number - 1]
        outputs = block.features(trajectory.states[number - 1].detach(), block.classes(labels), layers)
        found |= {(number, layer): output for layer, output in outputs.items()}
    return found


def reversed_(
    flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, places: Collection[Place], *, sweeps: int = 1
) -> Features:
    """Features of each block for its input rebuilt from the noise, down to the lowest block that is asked for."""
    layers_of = by_block(places)
    found: dict[Place, Tensor] = {}
    x = trajectory.z.detach()
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block, value = flow.flow_blocks[number - 1], trajectory.states[number - 1].detach()
        condition, above = block.classes(labels), x
        x = value
        for _ in range(sweeps):
            rebuilt = block.undo_once(x, above, condition)
            x = value + (rebuilt - rebuilt.detach())  # the gradient of the one, the value of the other
        outputs = block.features(x, condition, layers_of.get(number, ()))
        found |= {(number, layer): output for layer, output in outputs.items()}
    return found


def reversed_literally(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, places: Collection[Place]) -> Features:
    """Algorithm 2 as printed: every block down to the lowest is evaluated once, on its detached input.

    What it rebuilds from the noise is read by no loss, and left out here.
    """
    layers_of = by_block(places)
    found: dict[Place, Tensor] = {}
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block = flow.flow_blocks[number - 1]
        outputs = block(trajectory.states[number - 1].detach(), block.classes(labels), layers_of.get(number, ()))
        found |= {(number, layer): output for layer, output in outputs.features.items()}
    return found


def reversed_sequentially(
    flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, places: Collection[Place]
) -> Features:
    """Features of each block for the exact inverse of the noise, patch by patch, with the whole gradient."""
    layers_of = by_block(places)
    found: dict[Place, Tensor] = {}
    x = trajectory.z.detach()
    for number in range(len(flow.blocks), min(layers_of, default=1) - 1, -1):
        block = flow.flow_blocks[number - 1]
        condition = block.classes(labels)
        x = undo(block, x, condition)
        outputs = block.features(x, condition, layers_of.get(number, ()))
        found |= {(number, layer): output for layer, output in outputs.items()}
    return found


def undo(block: FlowBlock, z: Tensor, condition: Tensor) -> Tensor:
    """The exact inverse of one block with its gradient: z (B, T, D) -> x (B, T, D), one whole prefix a patch."""
    z = block.reading_order(z)
    x = z[:, :1]
    for place in range(1, z.shape[1]):
        affine = block.predict(x, condition)
        following = restore(z[:, place : place + 1], type(affine)(*(part[:, -1:] for part in affine)))
        x = torch.cat([x, following], dim=1)
    return block.reading_order(x)


def by_block(places: Collection[Place]) -> dict[int, list[int]]:
    """The layers asked for, by block; both counted from 1."""
    layers: dict[int, list[int]] = {}
    for block, layer in places:
        layers.setdefault(block, []).append(layer)
    return layers


def read_forward(flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, places: Collection[Place]) -> Features:  # noqa: ARG001
    """The features of the pass itself, which must have been asked for them."""
    return {place: trajectory.features[place] for place in places}


WAYS: Mapping[str, Way] = {
    "forward": read_forward,
    "detach": detached,
    "reverse": reversed_,
    "reverse_literal": reversed_literally,
    "reverse_sequential": reversed_sequentially,
}
