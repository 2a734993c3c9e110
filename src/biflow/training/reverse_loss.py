"""What a reverse model is held to: the flow's states, and the image by every distance that the config lists."""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from biflow.config import DistanceConfig, ModelConfig, ReverseFitConfig
from biflow.data.randomness import seeded_weights
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.perceptual import ImageDistance, make_distance
from biflow.losses.perceptual import WHOLE, adaptive
from biflow.losses.trajectory import hidden_alignment
from biflow.models.codec import Codec
from biflow.models.forward_flow import FlowPass
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.batches import Batch
from biflow.training.loop import LossParts


class ReverseLoss(nn.Module):
    """How far the way back from the flow's noise is from the flow's states and its image.

    Frozen networks that distances look through are loaded here, and tried on an image of the model's size.
    """

    def __init__(
        self,
        fit: ReverseFitConfig,
        model: ModelConfig,
        *,
        codec: Codec,
        image_shape: tuple[int, ...],
        classifier: Classifier | None = None,
    ) -> None:
        super().__init__()
        self.fit, self.model, self.codec = fit, model, codec
        self.distances = nn.ModuleDict()
        seen: Counter[str] = Counter()
        latent_shape = (model.channels, model.image_size, model.image_size)
        for config in fit.distances:
            with seeded_weights(0):  # a module of the user's may draw its weights
                distance = make_distance(config, classifier=classifier)
            shape = latent_shape if config.space == "latents" else image_shape
            try_distance(config, distance, shape, half=fit.precision == "bfloat16")
            seen[config.kind] += 1
            self.distances[config.kind if seen[config.kind] == 1 else f"{config.kind}_{seen[config.kind]}"] = distance

    def forward(self, reverse: ReverseModel, trajectory: FlowPass, batch: Batch) -> LossParts:
        """The sum of all terms, each weighted image by image if that is asked for; no gradient reaches the flow.

        The parts are the terms' plain means, before any weight.
        """
        z = trajectory.z.detach()
        if reverse.config.guidance == "trained":
            way_back = reverse.forward_recovered(z, batch.labels, batch.guidance)
        else:
            way_back = reverse(z, batch.labels)
        terms = self._compare(way_back.image, batch.clean if reverse.denoise else batch.noisy, batch)
        weights = {name: config.weight for name, config in zip(terms, self.fit.distances, strict=True)}
        if reverse.heads:
            read, first = reverse.read_heads(way_back.hidden), reverse.first_head
            states = trajectory.states[first:-1]
            terms["alignment"] = hidden_alignment(read, states, reverse.state_rms[first:])  # (levels, B)
        weighed = [weights.get(name, 1.0) * self._adapt(term) for name, term in terms.items()]
        parts = {name: _over_levels(term).mean().detach() for name, term in terms.items()}
        return LossParts(torch.stack([_over_levels(term).mean() for term in weighed]).sum(), parts)

    def _compare(self, patches: Tensor, wanted: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Patches (B, T, D) and the wanted latents (B, P, H, W) -> every distance, (B,), by its name."""
        latents = unpatchify(patches, self.model.patch_size, self.model.channels).float()
        spaces = {"latents": (latents, wanted)}
        if any(config.space == "images" for config in self.fit.distances):
            with torch.no_grad():
                wanted_images = self.codec.to_images(wanted)
            spaces["images"] = (self.codec.to_images(latents), wanted_images)
        return {
            name: distance(*spaces[config.space], batch.window)
            for config, (name, distance) in zip(self.fit.distances, self.distances.items(), strict=True)
        }

    def _adapt(self, term: Tensor) -> Tensor:
        return adaptive(term, self.fit.adaptive_power, self.fit.adaptive_offset)


def _over_levels(term: Tensor) -> Tensor:
    """(levels, B) or (B,) -> (B,), summed over levels."""
    return term.sum(dim=0) if term.ndim == 2 else term


def try_distance(config: DistanceConfig, distance: ImageDistance, shape: tuple[int, ...], *, half: bool) -> None:
    """Raise unless the distance takes images of this shape (P, H, W), and gives each a number that has a gradient."""
    device = next((each.device for each in distance.parameters()), torch.device("cpu"))
    images = torch.linspace(-1, 1, 2 * math.prod(shape), device=device).view(2, *shape).requires_grad_()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            found = distance(images, torch.zeros_like(images), WHOLE)
    except Exception as error:  # of somebody's network
        size = distance.input_size or shape[-1]
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(
            f"Expected the network of the distance {config.kind!r} to take {shape[0]}x{size}x{size} images; it fails: "
            f"{reason.removesuffix('.')}. Set input_size to a size that it takes; it must give floating-point tensors, "
            "one or several, with the images first."
        ) from None
    if tuple(found.shape) != (2,) or not found.isfinite().all():
        raise InputError(
            f"Expected the distance {config.kind!r} to give a finite number for each of two images; "
            f"got {found.flatten().tolist()}. Choose another network."
        )
    if not found.requires_grad:
        raise InputError(
            f"Expected the distance {config.kind!r} to have a gradient; its network cuts it. Take torch.no_grad and "
            "detach out of its forward pass."
        )
