"""What is minimised: modules that take a batch and return a loss with its parts."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.losses.trajectory import hidden_alignment
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.models.reverse_model import ReverseModel


class Batch(NamedTuple):
    """One process's part of a training batch, with everything random already done to it."""

    clean: Tensor  # (B, P, H, W)
    noisy: Tensor  # (B, P, H, W)
    labels: Tensor  # (B,), some of them null
    guidance: Tensor  # (B,), strengths to train the reverse model with; 0 where the label is null


class LossParts(NamedTuple):
    """A loss, and what it is made of."""

    total: Tensor  # scalar, has gradient
    parts: Mapping[str, Tensor]  # detached scalars, for the log only


class FitFlow(nn.Module):
    """Maximum likelihood of noisy images (TARFlow, arXiv 2412.06329), in nats per dimension."""

    def __init__(self, flow: ForwardFlow) -> None:
        super().__init__()
        self.model = flow

    def forward(self, batch: Batch) -> LossParts:
        """The mean negative log-likelihood."""
        patches = patchify(batch.noisy, self.model.config.patch_size)
        loss = -self.model.log_prob(patches, batch.labels).mean() / patches[0].numel()
        return LossParts(loss, {"nats_per_dim": loss.detach()})


class FitReverse(nn.Module):
    """Hidden alignment with the learned denoising block (BiFlow, arXiv 2512.10953): the flow teaches, frozen.

    The noise z that the flow finds for a noisy image goes in; every level is held to the flow's state,
    and the output to the clean image.
    """

    def __init__(self, reverse: ReverseModel, flow: ForwardFlow) -> None:
        super().__init__()
        self.model = reverse
        self.flow = flow.requires_grad_(False)

    def forward(self, batch: Batch) -> LossParts:
        """Alignment of all levels plus the error of the clean image."""
        patch_size = self.flow.config.patch_size
        with torch.no_grad():
            trajectory = self.flow(patchify(batch.noisy, patch_size), batch.labels)
        if self.model.config.guidance == "trained":
            way_back = self.model.forward_recovered(trajectory.z, batch.labels, batch.guidance)
        else:
            way_back = self.model(trajectory.z, batch.labels)
        alignment = hidden_alignment(
            self.model.read_states(way_back.hidden), trajectory.states[:-1], self.model.state_rms
        )
        image = F.mse_loss(way_back.image, patchify(batch.clean, patch_size))
        return LossParts(alignment + image, {"alignment": alignment.detach(), "image": image.detach()})


class FitClassifier(nn.Module):
    """Cross-entropy of a classifier on clean images."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.model = classifier

    def forward(self, batch: Batch) -> LossParts:
        """The mean cross-entropy, in nats."""
        loss = F.cross_entropy(self.model(batch.clean), batch.labels)
        return LossParts(loss, {"cross_entropy": loss.detach()})
