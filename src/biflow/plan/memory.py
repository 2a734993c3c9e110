"""Peak memory of a training step on each device, in bytes.

DDP replicates everything and copies the gradients into its buckets. FSDP2 shards everything and gathers one block at a
time. Attention is assumed not to materialise its scores.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from biflow.config import FitConfig, RunConfig, TransformerConfig
from biflow.features.classifier import Classifier
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel
from biflow.nn.transformer import layer_matrices
from biflow.plan.operations import Step, bytes_per_value, feature_width, training_step
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
        return self.parameters + self.gradients + self.moments + self.average + self.copies

    def peak(self, batch: float) -> float:
        """Peak bytes of a step with this many images per device."""
        return self.fixed + batch * self.image + max(0.0, batch * self.work - self.gradients)

    def largest_batch(self, device_memory: float) -> int:
        """The largest batch per device whose peak fits into this many bytes; 0 if none does."""
        free = device_memory - self.fixed
        return max(0, math.floor(min(free / self.image, (free + self.gradients) / (self.image + self.work))))


def step_memory(config: RunConfig, stage: str, *, devices: int, sharded: bool, recompute: bool = False) -> Memory:
    """Memory per device of a stage's step under DDP, or FSDP2 if sharded."""
    fit = config.fit_reverse if stage == "reverse" and config.fit_reverse else config.fit_flow
    trained, frozen = trained_parameters(config, stage), frozen_parameters(config, stage)
    value, split = bytes_per_value(fit), devices if sharded else 1
    copies: float = value * trained.linear if value < FULL else 0  # cached by autocast
    if sharded:
        copies = 2 * value * trained.block  # one gathered block with its gradients
    elif devices > 1:
        copies += FULL * trained.all  # buckets
    return Memory(
        parameters=FULL * (trained.all / split + frozen.all / split),
        gradients=FULL * trained.all / split,
        moments=FULL * (MOMENTS * trained.all - (trained.matrices if fit.optimizer == "muon" else 0)) / split,
        average=FULL * trained.all / split,
        copies=copies,
        image=_image_bytes(training_step(config, stage), recompute=recompute),
        work=_work_bytes(config, stage, fit, recompute=recompute),
    )


def _image_bytes(step: Step, *, recompute: bool) -> float:
    return step.buffers + step.trained.saved - (step.trained.recomputed if recompute else 0)


def _work_bytes(config: RunConfig, stage: str, fit: FitConfig, *, recompute: bool) -> float:
    """Workspace of the most expensive layer, with recompute including the tensors that it saves again."""
    model, value = config.model, bytes_per_value(fit)
    networks: list[tuple[TransformerConfig, int]] = []
    if stage != "flow" and model.reverse:
        networks.append((model.reverse, model.num_patches + model.reverse.class_tokens))
    if stage != "reverse":
        networks.append((model.flow, model.num_patches))
    return max(
        length * backward_workspace(sizes, value) + recompute * layer(sizes, length, value=value).recomputed
        for sizes, length in networks
    )


def trained_parameters(config: RunConfig, stage: str) -> Parameters:
    """Parameters that a stage trains."""
    return _add(_count(network) for network in _networks(config, stage) if network)


def frozen_parameters(config: RunConfig, stage: str) -> Parameters:
    """Frozen parameters of a stage: the flow for the reverse model, the small classifier for an alignment."""
    align, model = config.fit_flow.align, config.model
    if stage == "reverse":
        return _add(_count(network) for network in _networks(config, "flow")[:1] if network)
    if align and align.encoder == "classifier":
        with torch.device("meta"):
            return _count(Classifier(model.channels, max(1, model.num_classes)))
    return Parameters()


def _networks(config: RunConfig, stage: str) -> list[nn.Module | None]:
    """The flow, its projector and the reverse model, if the stage trains them, on the meta device."""
    align, width = config.fit_flow.align, config.model.flow.width
    with torch.device("meta"):
        flow, projector = None, None
        if stage != "reverse":
            flow = ForwardFlow(config.model)
        if align and flow:
            hidden = align.hidden_width or width
            sizes = [(width, hidden), (hidden, hidden), (hidden, feature_width(align))]
            projector = nn.Sequential(*(nn.Linear(*size) for size in sizes))
        reverse = ReverseModel(config.model) if stage != "flow" else None
    return [flow, projector, reverse]


def _count(network: nn.Module) -> Parameters:
    linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
    blocks = [*getattr(network, "blocks", ()), network]
    sizes = [sum(p.numel() for p in part.parameters()) for part in blocks]
    return Parameters(
        sizes[-1],
        sum(p.numel() for part in linear for p in part.parameters()),
        max(sizes[:-1] or sizes),
        sum(p.numel() for p in layer_matrices(network)),
    )


def _add(counts: Iterable[Parameters]) -> Parameters:
    counts = list(counts)
    return Parameters(
        sum(each.all for each in counts),
        sum(each.linear for each in counts),
        max(each.block for each in counts),
        sum(each.matrices for each in counts),
    )
