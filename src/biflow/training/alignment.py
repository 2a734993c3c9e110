"""Alignment of the flow's features with a frozen encoder's (FlowBack, arXiv 2511.22345, eq. 4 and 5)."""

from functools import partial

import torch
from torch import Tensor, nn

from biflow.config import AlignConfig, ModelConfig
from biflow.errors import InputError
from biflow.features.encoders import Encoder
from biflow.features.pretrained import note_grey
from biflow.losses.representation import FEATURE_DISTANCES, resample
from biflow.models.alignment_paths import ALIGNMENT_PATHS, AlignmentPath, reverse_features
from biflow.models.forward_flow import FlowPass, ForwardFlow


class Alignment(nn.Module):
    """Distance of the flow's projected features from the encoder's; one projector for all layers."""

    def __init__(
        self, config: AlignConfig, model: ModelConfig, encoder: Encoder, *, image_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = model.image_size // model.patch_size
        self.sees_images = model.codec != "pixels" and config.encoder != "classifier"
        if not self.sees_images:
            image_shape = (model.channels, model.image_size, model.image_size)
        width, hidden = try_encoder(config, encoder, image_shape), config.hidden_width or model.flow.width
        self.projector = nn.Sequential(
            *(nn.Linear(model.flow.width, hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, width),
        )
        self.path: AlignmentPath = ALIGNMENT_PATHS[config.strategy]
        if config.strategy == "reverse":
            self.path = partial(reverse_features, sweeps=config.sweeps)
        self.distance = FEATURE_DISTANCES[config.distance]
        # whose features the flow's own forward pass must return
        self.forward_layers = config.layers if config.strategy == "forward" else ()

    def forward(self, flow: ForwardFlow, trajectory: FlowPass, labels: Tensor, images: Tensor) -> Tensor:
        """Mean distance over layers and images, a scalar; images (B, P, H, W) as the encoder takes them."""
        target = resample(self.encoder(images), self.side)  # (B, T, F)
        features = self.path(flow, trajectory, labels, self.config.layers)
        distances = [self.distance(self.projector(features[layer]), target).mean() for layer in self.config.layers]
        return torch.stack(distances).mean()


@torch.no_grad()
def try_encoder(config: AlignConfig, encoder: Encoder, image_shape: tuple[int, ...]) -> int:
    """Feature width of the encoder; raises unless it maps images of this shape (P, H, W) to a square feature grid."""
    if config.encoder not in {"classifier", "module"}:
        note_grey(f"the encoder {config.encoder!r}", image_shape[0])
    device = next((each.device for each in encoder.parameters()), torch.device("cpu"))
    try:
        found = encoder(torch.zeros(2, *image_shape, dtype=torch.float32, device=device))
    except InputError:
        raise
    except Exception as error:  # whatever a user's network raises
        size = encoder.input_size or image_shape[-1]
        reason = (str(error) or type(error).__name__).partition("\n")[0].removesuffix(".")
        raise InputError(
            f"Expected the encoder {config.encoder!r} to accept {image_shape[0]}x{size}x{size} images; it fails: "
            f"{reason}. Fix it, or set fit_flow.align.input_size to a size that it accepts."
        ) from None
    what = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 2 or not found.numel():
        problem = f"features (B, F, h, w), or tokens (B, patches, F); got {what} for two images"
    elif found.shape[2] != found.shape[3]:
        problem = f"a square feature grid, like the flow's patches; got {found.shape[2]}x{found.shape[3]}"
    elif not found.is_floating_point() or not found.isfinite().all():
        problem = f"finite floating-point features; got {'NaN or Inf' if found.is_floating_point() else what}"
    else:
        return found.shape[1]
    raise InputError(f"Expected the encoder {config.encoder!r} to return {problem}. Fix it, or choose another encoder.")
