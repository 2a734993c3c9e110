"""What is minimised: modules that take a batch and return a loss with its parts."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from biflow.distributed import mean_over_processes
from biflow.errors import InputError
from biflow.models.codec import training_noise
from biflow.models.forward_flow import FlowPass, ForwardFlow
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.loop import LossParts, Objective
from biflow.training.reverse_loss import ReverseLoss

RMS_RATE = 0.01  # of the running mean, a step


class FitFlow(Objective):
    """Maximum likelihood of noisy images (TARFlow, arXiv 2412.06329), in nats per dimension.

    With an alignment, its weighted distance is added (FlowBack, arXiv 2511.22345, eq. 5), and its projector is trained
    too.
    """

    def __init__(self, flow: ForwardFlow, alignment: Alignment | None = None) -> None:
        trained = nn.ModuleDict({"flow": flow, "projector": alignment.projector}) if alignment else flow
        super().__init__(trained)
        self.flow, self.alignment = flow, alignment
        self.sees_images = alignment is not None and alignment.sees_images
        self.noise_std, self.bin_width = training_noise(flow.config)

    def forward(self, batch: Batch) -> LossParts:
        """The mean negative log-likelihood, and the distance from the encoder if the flow is aligned."""
        return self.evaluate(batch)[1]

    def networks(self, model: nn.Module) -> tuple[ForwardFlow | None, ReverseModel | None]:
        """The flow alone."""
        return flow_of(model), None

    def diagnose(self, batch: Batch) -> str:
        """The block whose scale grew most."""
        return describe_scales(self.flow, batch)

    def evaluate(self, batch: Batch) -> tuple[FlowPass, LossParts]:
        """The flow's pass over a batch, and its loss."""
        layers = self.alignment.forward_layers if self.alignment else ()
        trajectory = self.flow(patchify(batch.noisy, self.flow.config.patch_size), batch.labels, layers)
        loss = flow_loss(self.flow, trajectory)
        if self.alignment is None:
            return trajectory, loss
        images = batch.clean if batch.images is None else batch.images
        distance = self.alignment(self.flow, trajectory, batch.labels, images)
        total = loss.total + self.alignment.config.weight * distance
        return trajectory, LossParts(total, {**loss.parts, "representation": distance.detach()})


def flow_loss(flow: ForwardFlow, trajectory: FlowPass) -> LossParts:
    """The mean negative log-likelihood of what the flow was given, in nats per dimension."""
    loss = -flow.log_prob_of(trajectory).mean() / trajectory.z[0].numel()
    return LossParts(loss, {"nats_per_dim": loss.detach()})


def flow_of(model: nn.Module) -> ForwardFlow:
    """The flow in what `FitFlow` trains, which may be trained with a projector beside it."""
    flow = model["flow"] if isinstance(model, nn.ModuleDict) else model
    assert isinstance(flow, ForwardFlow)
    return flow


def describe_scales(flow: ForwardFlow, batch: Batch) -> str:
    """Which block of the flow scales a batch most, or is the first to give what is not finite."""
    sizes = flow.largest_log_scales(patchify(batch.noisy, flow.config.patch_size), batch.labels)
    broken = [number for number, size in enumerate(sizes, start=1) if not math.isfinite(size)]
    if broken:
        return f"Block {broken[0]} of the flow, counted from 1 at the data, is the first whose scale is not finite."
    number = sizes.index(max(sizes)) + 1
    bound = " Bound it with model.flow.clip." if flow.config.flow.clip is None else ""
    return (
        f"The largest log-scale is {max(sizes):.3g}, in block {number} of the flow, counted from 1 at the data.{bound}"
    )


class FitReverse(Objective):
    """The inverse learned from the frozen flow (BiFlow, arXiv 2512.10953), by the strategy of the reverse model.

    The noise z that the flow finds for a noisy image goes in; every level that has a head is held to the flow's state,
    and the output to the clean image, or to the noisy one where denoising is not learned.
    """

    def __init__(self, reverse: ReverseModel, flow: ForwardFlow, loss: ReverseLoss) -> None:
        super().__init__(reverse)
        self.reverse, self.loss = reverse, loss
        self.flow = flow.requires_grad_(False)
        self.noise_std, self.bin_width = training_noise(flow.config)
        self.max_guidance = reverse.config.max_guidance if reverse.config.guidance == "trained" else 0.0

    def networks(self, model: nn.Module) -> tuple[ForwardFlow | None, ReverseModel | None]:
        """The frozen flow, and the reverse model."""
        assert isinstance(model, ReverseModel)
        return self.flow, model

    def diagnose(self, batch: Batch) -> str:
        """The block whose scale grew most."""
        return describe_scales(self.flow, batch)

    def check_resumed(self) -> None:
        """Raise unless the flow is the one that the reverse model was being fitted to."""
        if not self.reverse.belongs_to(self.flow):
            raise InputError(
                "Expected the flow that this run began to fit its reverse model to; the one that is there now is "
                "another. Put it back, or start in another folder."
            )

    def forward(self, batch: Batch) -> LossParts:
        """The distance of all levels plus the distances of the image."""
        with torch.no_grad():
            trajectory = self.flow(patchify(batch.noisy, self.flow.config.patch_size), batch.labels)
        return self.loss(self.reverse, trajectory, batch)


class FitJoint(Objective):
    """Flow and reverse model at once: each minimises its own loss, and the reverse model's never moves the flow.

    The sizes of the flow's states, which change while it learns, are followed by a running mean.
    """

    def __init__(self, reverse: ReverseModel, forward: FitFlow, loss: ReverseLoss) -> None:
        super().__init__(nn.ModuleDict({"flow": forward.model, "reverse": reverse}))
        self.reverse, self.fit_flow, self.loss = reverse, forward, loss
        self.noise_std, self.bin_width = forward.noise_std, forward.bin_width
        self.sees_images = forward.sees_images
        self.max_guidance = reverse.config.max_guidance if reverse.config.guidance == "trained" else 0.0

    def networks(self, model: nn.Module) -> tuple[ForwardFlow | None, ReverseModel | None]:
        """Both."""
        assert isinstance(model, nn.ModuleDict)
        reverse = model["reverse"]
        assert isinstance(reverse, ReverseModel)
        return flow_of(model["flow"]), reverse

    def diagnose(self, batch: Batch) -> str:
        """The block whose scale grew most."""
        return describe_scales(self.fit_flow.flow, batch)

    @property
    def parts(self) -> list[nn.Module]:
        """The flow and the reverse model."""
        return [self.fit_flow.model, self.reverse]

    def forward(self, batch: Batch) -> LossParts:
        """The sum of both losses."""
        trajectory, forward = self.fit_flow.evaluate(batch)
        if self.training and self.reverse.config.normalise:
            squares = torch.stack([state.detach().square().mean() for state in trajectory.states[:-1]])
            self.reverse.state_rms.lerp_(mean_over_processes(squares).sqrt(), RMS_RATE)
        back = self.loss(self.reverse, trajectory, batch)
        return LossParts(forward.total + back.total, {**forward.parts, **back.parts})


class FitClassifier(Objective):
    """Cross-entropy of a classifier on clean images."""

    def forward(self, batch: Batch) -> LossParts:
        """The mean cross-entropy, in nats."""
        loss = F.cross_entropy(self.model(batch.clean), batch.labels)
        return LossParts(loss, {"cross_entropy": loss.detach()})
