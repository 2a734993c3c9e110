"""What is minimised: modules that take a batch and return a loss with its parts."""

import torch
import torch.nn.functional as F

from biflow.losses.trajectory import hidden_alignment
from biflow.models.codec import training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.loop import Batch, LossParts, Objective


class FitFlow(Objective):
    """Maximum likelihood of noisy images (TARFlow, arXiv 2412.06329), in nats per dimension."""

    def __init__(self, flow: ForwardFlow) -> None:
        super().__init__(flow)
        self.flow = flow
        self.noise_std, self.bin_width = training_noise(flow.config)

    def forward(self, batch: Batch) -> LossParts:
        """The mean negative log-likelihood."""
        patches = patchify(batch.noisy, self.flow.config.patch_size)
        loss = -self.flow.log_prob(patches, batch.labels).mean() / patches[0].numel()
        return LossParts(loss, {"nats_per_dim": loss.detach()})


class FitReverse(Objective):
    """The inverse learned from the frozen flow (BiFlow, arXiv 2512.10953), by the strategy of the reverse model.

    The noise z that the flow finds for a noisy image goes in; every level that has a head is held to the flow's state,
    and the output to the clean image, or to the noisy one where denoising is not learned.
    """

    def __init__(self, reverse: ReverseModel, flow: ForwardFlow) -> None:
        super().__init__(reverse)
        self.reverse = reverse
        self.flow = flow.requires_grad_(False)
        self.noise_std, self.bin_width = training_noise(flow.config)
        self.max_guidance = reverse.config.max_guidance if reverse.config.guidance == "trained" else 0.0

    def forward(self, batch: Batch) -> LossParts:
        """The distance of all levels plus the error of the image."""
        patch_size = self.flow.config.patch_size
        with torch.no_grad():
            trajectory = self.flow(patchify(batch.noisy, patch_size), batch.labels)
        if self.reverse.config.guidance == "trained":
            way_back = self.reverse.forward_recovered(trajectory.z, batch.labels, batch.guidance)
        else:
            way_back = self.reverse(trajectory.z, batch.labels)
        target = batch.clean if self.reverse.denoise else batch.noisy
        image = F.mse_loss(way_back.image, patchify(target, patch_size))
        if not self.reverse.heads:
            return LossParts(image, {"image": image.detach()})
        first = self.reverse.first_head
        alignment = hidden_alignment(
            self.reverse.read_heads(way_back.hidden), trajectory.states[first:-1], self.reverse.state_rms[first:]
        )
        return LossParts(alignment + image, {"alignment": alignment.detach(), "image": image.detach()})


class FitClassifier(Objective):
    """Cross-entropy of a classifier on clean images."""

    def forward(self, batch: Batch) -> LossParts:
        """The mean cross-entropy, in nats."""
        loss = F.cross_entropy(self.model(batch.clean), batch.labels)
        return LossParts(loss, {"cross_entropy": loss.detach()})
