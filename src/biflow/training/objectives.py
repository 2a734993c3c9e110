"""The objectives of flow, reverse model, both together, and the classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.distributed import mean_over_processes
from biflow.errors import InputError
from biflow.models.codec import training_noise
from biflow.models.forward_flow import FlowPass, ForwardFlow
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.objective import LossParts, Objective
from biflow.training.reverse_loss import ReverseLoss

RMS_RATE = 0.01  # weight of each step in the running mean of the states' sizes


class FitFlow(Objective):
    """Negative log-likelihood of noisy images in nats per dimension (TARFlow, arXiv 2412.06329).

    With an alignment, its weighted distance is added and its projector is trained (FlowBack, arXiv 2511.22345, eq. 5).
    """

    flow: ForwardFlow

    def __init__(self, flow: ForwardFlow, alignment: Alignment | None = None) -> None:
        trained = nn.ModuleDict({"flow": flow, "projector": alignment.projector}) if alignment else flow
        super().__init__(trained, flow)
        self.alignment = alignment
        self.sees_images = alignment is not None and alignment.sees_images
        self.noise_std, self.bin_width = training_noise(flow.config)

    def forward(self, batch: Batch) -> LossParts:
        """Mean loss over the batch."""
        return self.evaluate(batch)[1]

    def evaluate(self, batch: Batch) -> tuple[FlowPass, LossParts]:
        """The flow's forward pass on a batch, and the loss."""
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
    """Mean negative log-likelihood of a forward pass's input, in nats per dimension."""
    loss = -flow.log_prob_of(trajectory).mean() / trajectory.z[0].numel()
    return LossParts(loss, {"nats_per_dim": loss.detach()})


class FitReverse(Objective):
    """Fit the reverse model to the inverse of the frozen flow (BiFlow, arXiv 2512.10953).

    The input is the flow's noise z of a noisy image. Each level with a head is supervised by the flow's state, the
    output by the clean image, or by the noisy one if denoising is not learned. No gradient reaches the flow.
    """

    flow: ForwardFlow

    def __init__(self, reverse: ReverseModel, flow: ForwardFlow, loss: ReverseLoss) -> None:
        super().__init__(reverse, flow.requires_grad_(False))
        self.reverse, self.loss = reverse, loss
        self.noise_std, self.bin_width = training_noise(flow.config)
        self.max_guidance = reverse.config.max_guidance if reverse.config.guidance == "trained" else 0.0

    def check_resumed(self) -> None:
        """Raise unless the reverse model was being fitted to this flow."""
        if not self.reverse.matches_flow(self.flow):
            raise InputError(
                "Expected the flow that this run started to fit its reverse model to; the current flow has other "
                "weights. Restore that flow, or start in a new folder."
            )

    def forward(self, batch: Batch) -> LossParts:
        """Alignment of all levels plus the distances of the image."""
        with torch.no_grad():
            trajectory = self.flow(patchify(batch.noisy, self.flow.config.patch_size), batch.labels)
        return self.loss(self.reverse, trajectory, batch)


class FitJoint(Objective):
    """Joint training of flow and reverse model, each on its own loss; the reverse loss sends no gradient to the flow.

    The root mean squares of the flow's states change during training and are tracked by a running mean, updated once a
    step from all parts of its batch, unless the step is skipped.
    """

    def __init__(self, reverse: ReverseModel, forward: FitFlow, loss: ReverseLoss) -> None:
        super().__init__(nn.ModuleDict({"flow": forward.model, "reverse": reverse}), forward.flow)
        self.reverse, self.fit_flow, self.loss = reverse, forward, loss
        self.noise_std, self.bin_width = forward.noise_std, forward.bin_width
        self.sees_images = forward.sees_images
        self.max_guidance = reverse.config.max_guidance if reverse.config.guidance == "trained" else 0.0
        self.squares: list[Tensor] = []  # mean squares of the states, (levels,), of each part of the current step

    @torch.no_grad()
    def after_step(self, skipped: Tensor) -> None:
        """Update the running root mean squares, unless the step was skipped; collective."""
        squares, self.squares = self.squares, []
        if squares:
            rms = mean_over_processes(torch.stack(squares).mean(dim=0)).sqrt()
            moved = self.reverse.state_rms.lerp(rms, RMS_RATE)
            self.reverse.state_rms.copy_(torch.where(skipped.bool(), self.reverse.state_rms, moved))

    @property
    def parts(self) -> list[nn.Module]:
        """The flow and the reverse model, whose gradients are clipped separately."""
        return [self.fit_flow.model, self.reverse]

    def forward(self, batch: Batch) -> LossParts:
        """Sum of both losses."""
        trajectory, forward = self.fit_flow.evaluate(batch)
        if self.training and self.reverse.config.normalise:
            self.squares.append(torch.stack([state.detach().square().mean() for state in trajectory.states[:-1]]))
        reverse = self.loss(self.reverse, trajectory, batch)
        return LossParts(forward.total + reverse.total, {**forward.parts, **reverse.parts})


class FitClassifier(Objective):
    """Cross-entropy of a classifier on clean images."""

    def forward(self, batch: Batch) -> LossParts:
        """Mean cross-entropy in nats."""
        loss = F.cross_entropy(self.model(batch.clean), batch.labels)
        return LossParts(loss, {"cross_entropy": loss.detach()})
