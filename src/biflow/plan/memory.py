"""Peak memory of a training step on each device, in bytes.

DDP replicates everything and copies the gradients into its buckets. FSDP2 shards everything and gathers one block at a
time. Attention is assumed not to materialise its scores.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from biflow.config import FitConfig, RunConfig, TransformerConfig
from biflow.features.classifier import Classifier
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel
from biflow.nn.transformer import layer_matrices
from biflow.plan.operations import FROZEN_FLOW, bytes_per_value, feature_width, stage_fits, training_step
from biflow.plan.parts import FULL, backward_workspace, layer

MOMENTS = 2  # AdamW's per parameter; Muon keeps one


class Parameters(NamedTuple):
    """Parameter counts."""

    all: int = 0
    linear: int = 0  # in linear layers, which run in the fit's precision
    block: int = 0  # in the largest block
    matrices: int = 0  # that Muon can train


class Memory(NamedTuple):
    """Bytes per device, independent of the batch and per image."""

    parameters: float
    gradients: float
    moments: float
    average: float
    copies: float  # of parameters and gradients, for mixed precision and communication
    image: float  # per image: saved tensors and the batch
    work: float  # per image: workspace of one layer's backward pass, which reuses the last step's gradients

    @property
    def fixed(self) -> float:
        """Bytes independent of the batch size."""
        return sum(self[:5])

    def peak(self, batch: float) -> float:
        """Peak bytes of a step with this many images per device."""
        return self.fixed + batch * self.image + max(0.0, batch * self.work - self.gradients)

    def largest_batch(self, device_memory: float) -> int:
        """The largest batch per device whose peak fits into this many bytes; 0 if none does."""
        free = device_memory - self.fixed
        return max(0, math.floor(min(free / self.image, (free + self.gradients) / (self.image + self.work))))


def step_memory(config: RunConfig, stage: str, *, devices: int, sharded: bool, recompute: bool = False) -> Memory:
    """Memory per device of a stage's step under DDP, or FSDP2 if sharded."""
    fit, step, trained = stage_fits(config)[stage], training_step(config, stage), trained_parameters(config, stage)
    value, split = bytes_per_value(fit), devices if sharded else 1
    copies: float = value * trained.linear if value < FULL else 0  # cached by autocast
    if sharded:
        copies = 2 * value * trained.block  # one gathered block with its gradients
    elif devices > 1:
        copies += FULL * trained.all  # buckets
    return Memory(
        parameters=FULL * (trained.all + frozen_parameters(config, stage)) / split,
        gradients=FULL * trained.all / split,
        moments=FULL * (MOMENTS * trained.all - (trained.matrices if fit.optimizer == "muon" else 0)) / split,
        average=FULL * trained.all / split,
        copies=copies,
        image=step.buffers + step.trained.saved - recompute * step.trained.recomputed,
        work=_work_bytes(config, stage, fit, recompute=recompute),
    )


def _work_bytes(config: RunConfig, stage: str, fit: FitConfig, *, recompute: bool) -> float:
    """Workspace of the most expensive layer, with recompute including the tensors that it saves again."""
    model, value = config.model, bytes_per_value(fit)
    networks: list[tuple[TransformerConfig, int]] = []
    if stage != "flow" and model.reverse:
        networks.append((model.reverse, model.num_patches + model.reverse.class_tokens))
    if stage not in FROZEN_FLOW:
        networks.append((model.flow, model.num_patches))
    return max(
        length * backward_workspace(sizes, value) + recompute * layer(sizes, length, value=value).recomputed
        for sizes, length in networks
    )


def trained_parameters(config: RunConfig, stage: str) -> Parameters:
    """Parameters that a stage trains: of the flow and its projector, or of the reverse model, or of all three."""
    align, model = config.fit_flow.align, config.model
    networks: list[nn.Module] = []
    with torch.device("meta"):
        if stage not in FROZEN_FLOW:
            networks.append(ForwardFlow(model))
        if stage not in FROZEN_FLOW and align:
            widths = [model.flow.width, *[align.hidden_width or model.flow.width] * 2, feature_width(align)]
            networks.append(nn.Sequential(*(nn.Linear(*sizes) for sizes in pairwise(widths))))
        if stage != "flow":
            networks.append(ReverseModel(model))
    return _count(networks)


def frozen_parameters(config: RunConfig, stage: str) -> int:
    """Frozen parameters of a stage: the flow for the reverse model, the small classifier for an alignment."""
    align, model = config.fit_flow.align, config.model
    with torch.device("meta"):
        if stage in FROZEN_FLOW:
            return _size(ForwardFlow(model))
        if align and align.encoder == "classifier":
            return _size(Classifier(model.channels, max(1, model.num_classes)))
    return 0


def _count(networks: list[nn.Module]) -> Parameters:
    joined = nn.ModuleList(networks)
    linear = [part for part in joined.modules() if isinstance(part, nn.Linear)]
    blocks = [block for network in networks for block in getattr(network, "blocks", [network])]
    matrices = sum(p.numel() for p in layer_matrices(joined))
    return Parameters(_size(joined), sum(map(_size, linear)), max(map(_size, blocks)), matrices)


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
