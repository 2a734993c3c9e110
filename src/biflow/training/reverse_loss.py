"""Loss of the reverse model: alignment with the flow's states, and distances of the image."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from biflow.config import DistanceConfig, ModelConfig, ReverseFitConfig
from biflow.config.training import OWN
from biflow.data.randomness import seeded_weights
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.perceptual import ImageDistance, make_distance
from biflow.features.pretrained import note_grey
from biflow.losses.perceptual import WHOLE, adaptive
from biflow.losses.trajectory import hidden_alignment
from biflow.models.codec import Codec
from biflow.models.forward_flow import FlowPass
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.training.batches import Batch
from biflow.training.objective import LossParts


class ReverseLoss(nn.Module):
    """Weighted sum of the image's distances, by networks that are loaded and tried here, and the states' alignment."""

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
        latent_shape = (model.channels, model.image_size, model.image_size)
        for i, config in enumerate(fit.distances):
            with seeded_weights(0):  # a user's module may initialise weights at random
                distance = make_distance(config, classifier=classifier)
            shape = latent_shape if config.space == "latents" else image_shape
            try_distance(config, distance, shape, half=fit.precision == "bfloat16")
            same = sum(each.kind == config.kind for each in fit.distances[:i])
            self.distances[f"{config.kind}_{same + 1}" if same else config.kind] = distance

    def forward(self, reverse: ReverseModel, trajectory: FlowPass, batch: Batch) -> LossParts:
        """Weighted sum of all terms, adaptively if set (BiFlow, eq. 7), and their means; no gradient for the flow."""
        z = trajectory.z.detach()
        if reverse.config.guidance == "trained":
            reverse_pass = reverse.forward_recovered(z, batch.labels, batch.guidance)
        else:
            reverse_pass = reverse(z, batch.labels)
        terms = self._compare(reverse_pass.image, batch.clean if reverse.denoise else batch.noisy, batch)
        weights = {name: config.weight for name, config in zip(terms, self.fit.distances, strict=True)}
        if reverse.heads:
            predicted, first = reverse.read_heads(reverse_pass.hidden), reverse.first_head
            states = trajectory.states[first:-1]
            terms["alignment"] = hidden_alignment(predicted, states, reverse.state_rms[first:])  # (levels, B)
        power, offset = self.fit.adaptive_power, self.fit.adaptive_offset
        weighted = [weights.get(name, 1.0) * adaptive(term, power, offset) for name, term in terms.items()]
        parts = {name: _over_levels(term).mean().detach() for name, term in terms.items()}
        return LossParts(torch.stack([_over_levels(term).mean() for term in weighted]).sum(), parts)

    def _compare(self, patches: Tensor, target: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Distances (B,) by name between patches (B, T, D) and target latents (B, P, H, W)."""
        latents = unpatchify(patches, self.model.patch_size, self.model.channels).float()
        spaces = {"latents": (latents, target)}
        if any(config.space == "images" for config in self.fit.distances):
            with torch.no_grad():
                target_images = self.codec.to_images(target)
            spaces["images"] = (self.codec.to_images(latents), target_images)
        return {
            name: distance(*spaces[config.space], batch.window)
            for config, (name, distance) in zip(self.fit.distances, self.distances.items(), strict=True)
        }


def _over_levels(term: Tensor) -> Tensor:
    """(levels, B) or (B,) -> (B,), summed over levels."""
    return term.sum(dim=0) if term.ndim == 2 else term


def try_distance(config: DistanceConfig, distance: ImageDistance, shape: tuple[int, ...], *, half: bool) -> None:
    """Raise unless the distance takes images of this shape (P, H, W) and returns (B,) finite values with gradient."""

    def compare(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            return distance(images, torch.zeros_like(images), WHOLE)

    try_network(config, distance, shape, compare, expected="one number for each of two images", dims=1)


def try_network(
    config: DistanceConfig,
    distance: ImageDistance,
    shape: tuple[int, ...],
    call: Callable[[Tensor], Tensor],
    *,
    expected: str,
    dims: int,
) -> None:
    """Raise unless a call with two images (P, H, W) returns finite values of so many dims, batch first, with gradient.

    expected: what it should return, in words.
    """
    name = repr(config.kind)
    if config.kind not in OWN | {"module"}:
        note_grey(f"the distance {name}", shape[0])
    device = next((each.device for each in distance.parameters()), torch.device("cpu"))
    values = torch.linspace(-1, 1, 2 * math.prod(shape), dtype=torch.float32, device=device)
    images = values.view(2, *shape).requires_grad_()
    try:
        found = call(images)
    except Exception as error:  # whatever a user's network raises
        size = distance.input_size or shape[-1]
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(
            f"Expected the network of the distance {name} to accept {shape[0]}x{size}x{size} images; it fails: "
            f"{reason.removesuffix('.')}. Set input_size to a size that it accepts; it must return one or more "
            "floating-point tensors, batch first."
        ) from None
    if found.ndim != dims or len(found) != 2 or not found.isfinite().all():
        raise InputError(
            f"Expected {expected} of the distance {name}, all finite; got {found.flatten()[:4].tolist()}. Choose "
            "another network."
        )
    if not found.requires_grad:
        raise InputError(
            f"Expected the distance {name} to have a gradient; its network blocks it. Remove torch.no_grad and detach "
            "from the network."
        )
