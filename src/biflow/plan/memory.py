"""What a training step holds on each device at its peak, in bytes.

DDP keeps everything on every device, and the gradients a second time in its buckets.  FSDP2 keeps a share of everything
and gathers one block at a time.  A layer's attention is assumed not to write its scores down.
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
from biflow.plan.operations import Step, bytes_of_a_value, feature_width, training_step
from biflow.plan.parts import FULL, layer, layer_at_work

MOMENTS = 2  # of every gradient, that AdamW remembers; Muon remembers one


class Parameters(NamedTuple):
    """Numbers of parameters."""

    all: int = 0
    linear: int = 0  # those of linear maps, which run in the precision of a fit
    block: int = 0  # those of the largest block
    matrices: int = 0  # those that Muon trains where it is asked for


class Memory(NamedTuple):
    """Bytes on a device: those that are there whatever the batch is, and those of every image of it."""

    parameters: float
    gradients: float
    moments: float
    average: float
    copies: float  # of parameters and gradients, for the precision and the communication
    image: float  # what the backward pass reads, and the batch
    work: float  # what the backward pass of one layer needs for an image, when the last step's gradients are gone

    @property
    def fixed(self) -> float:
        """Bytes that are there whatever the batch is."""
        return self.parameters + self.gradients + self.moments + self.average + self.copies

    def peak(self, batch: float) -> float:
        """Bytes at the peak of a step with so many images a device."""
        return self.fixed + batch * self.image + max(0.0, batch * self.work - self.gradients)

    def largest_batch(self, device_memory: float) -> int:
        """The most images a device for which the peak fits in so many bytes; 0 for none."""
        free = device_memory - self.fixed
        return max(0, math.floor(min(free / self.image, (free + self.gradients) / (self.image + self.work))))


def step_memory(config: RunConfig, stage: str, *, devices: int, sharded: bool, recompute: bool = False) -> Memory:
    """What a stage's step holds on each of these devices, by DDP, or by FSDP2 if sharded."""
    fit = config.fit_reverse if stage == "reverse" and config.fit_reverse else config.fit_flow
    trained, frozen = trained_parameters(config, stage), frozen_parameters(config, stage)
    value, split = bytes_of_a_value(fit), devices if sharded else 1
    copies: float = value * trained.linear if value < FULL else 0  # those that autocast makes, and keeps
    if sharded:
        copies = 2 * value * trained.block  # one block gathered, with its gradients
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
    return step.held + step.trained.kept - (step.trained.spared if recompute else 0)


def _work_bytes(config: RunConfig, stage: str, fit: FitConfig, *, recompute: bool) -> float:
    """Of the layer that needs most; with recompute, what that layer keeps once more."""
    model, value = config.model, bytes_of_a_value(fit)
    found: list[tuple[TransformerConfig, int]] = []
    if stage != "flow" and model.reverse:
        found.append((model.reverse, model.num_patches + model.reverse.class_tokens))
    if stage != "reverse":
        found.append((model.flow, model.num_patches))
    again = float(recompute)
    return max(
        length * layer_at_work(sizes, value) + again * layer(sizes, length, value=value).spared
        for sizes, length in found
    )


def trained_parameters(config: RunConfig, stage: str) -> Parameters:
    """Those that a stage trains."""
    return _add(_count(network) for network in _networks(config, stage) if network)


def frozen_parameters(config: RunConfig, stage: str) -> Parameters:
    """Those that a stage reads beside: the flow's for the reverse model, the small classifier's for an alignment."""
    align, model = config.fit_flow.align, config.model
    if stage == "reverse":
        return _add(_count(network) for network in _networks(config, "flow")[:1] if network)
    if align and align.encoder == "classifier":
        with torch.device("meta"):
            return _count(Classifier(model.channels, max(1, model.num_classes)))
    return Parameters()


def _networks(config: RunConfig, stage: str) -> list[nn.Module | None]:
    """The flow, its projector and the reverse model, where a stage trains them: on no device, without values."""
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
    found = list(counts)
    return Parameters(
        sum(each.all for each in found),
        sum(each.linear for each in found),
        max(each.block for each in found),
        sum(each.matrices for each in found),
    )
