"""Feature networks for metrics: Inception (FID), DINOv2 (FD-DINOv2), EfficientNet or a reference classifier."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.errors import InputError, choose
from biflow.features.efficientnet import INPUT_SIZE, load_efficientnet
from biflow.features.inception import download_inception, inception_input, load_inception
from biflow.features.judge import Judge, load_judge
from biflow.features.pretrained import DEFAULT_INPUT, Frozen, ImageNetInput, load_from_hub
from biflow.tensors import hash_tensors

DINOV2 = "facebook/dinov2-large"


class Features(NamedTuple):
    """Features of a batch of images."""

    pooled: Tensor  # (B, F)
    spatial: Tensor | None = None  # (B, S), for sFID
    logits: Tensor | None = None  # (B, K), for the Inception Score


class FeatureNet(Frozen):
    """A frozen network with its preprocessing; always computes in float32."""

    name: str
    preprocessing: str
    channels = 3

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.checksum = hash_tensors(network.state_dict())
        self.eval().requires_grad_(False)

    def identity(self) -> str:
        """SHA-256 of the loaded weights."""
        return self.checksum

    def extract(self, pixels: Tensor) -> Features:
        """Float32 pixels (B, channels, H, W) in [0, 255], on the network's device -> features."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        """uint8 (B, P, H, W) -> float32 features on the network's device; grey images are repeated to all channels."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in {1, self.channels}:
            raise InputError(
                f"Expected uint8 pixels (B, {' or '.join(str(each) for each in sorted({1, self.channels}))}, H, W) for "
                f"{self.name}; got {pixels.dtype} {tuple(pixels.shape)}. Pass images as uint8."
            )
        device = next(self.network.parameters()).device
        images = pixels.to(device).float().expand(-1, self.channels, -1, -1)
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.extract(images)


class InceptionFeatures(FeatureNet):
    """Inception's pooled features (FID), spatial features (sFID) and logits without bias (Inception Score)."""

    name = "inception"
    preprocessing = "bilinear to 299 as TensorFlow 1, (x - 128) / 128"

    def extract(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, H, W) -> pooled (B, 2048), spatial (B, 2023), logits (B, 1008)."""
        return Features(*self.network(inception_input(pixels)))


class DinoV2Features(FeatureNet):
    """DINOv2's class token after the last norm, for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675)."""

    name = "dinov2"
    preprocessing = "bicubic to 224 as Pillow (antialiased, in whole levels), mean and deviation of ImageNet"

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        embeddings = network.embeddings
        positions = fit_positions(embeddings.position_embeddings, DEFAULT_INPUT // network.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)
        self.normalise = ImageNetInput().eval()

    def extract(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, H, W) -> pooled (B, F); F = 1024 for ViT-L."""
        images = resize_as_pillow(pixels, DEFAULT_INPUT) / 127.5 - 1
        output = self.network(pixel_values=self.normalise(images))
        return Features(output.last_hidden_state[:, 0])


def resize_as_pillow(images: Tensor, size: int) -> Tensor:
    """Resize pixels (B, P, H, W) in [0, 255] to (B, P, size, size) as Pillow does: bicubic and antialiased.

    Like Pillow, rounds to whole grey levels after the columns and again after the rows; ties may round differently,
    in fewer than 1% of pixels.
    """
    for shape in ((images.shape[2], size), (size, size)):
        images = (F.interpolate(images, shape, mode="bicubic", antialias=True) + 0.5).floor().clamp(0, 255)
    return images


def fit_positions(positions: Tensor, grid: int) -> Tensor:
    """Interpolate class and position embeddings (1, 1 + h * h, C) to (1, 1 + grid * grid, C) as DINOv2's own code does.

    It scales by (grid + 0.1) / h, transformers by grid / h: positions differ by up to a tenth of a patch.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions.detach()
    patches = positions.detach()[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, h, h)
    patches = F.interpolate(patches, scale_factor=(grid + 0.1) / side, mode="bicubic")
    return torch.cat([positions.detach()[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class EfficientNetFeatures(FeatureNet):
    """EfficientNet-Lite0's pooled features, for a Fréchet distance where no other network can be downloaded."""

    name = "efficientnet"
    preprocessing = f"bicubic to {INPUT_SIZE} as Pillow (antialiased, in whole levels), x / 127.5 - 1"

    def extract(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, H, W) -> pooled (B, 1280)."""
        return Features(self.network(resize_as_pillow(pixels, INPUT_SIZE) / 127.5 - 1))


class JudgeFeatures(FeatureNet):
    """A judge's last hidden layer and logits."""

    name = "judge"
    preprocessing = "x / 127.5 - 1, at the images' own size"

    def __init__(self, network: Judge) -> None:
        super().__init__(network)
        self.channels = network.channels

    def extract(self, pixels: Tensor) -> Features:
        """Pixels (B, channels, H, W) -> pooled (B, F), logits (B, K)."""
        assert isinstance(self.network, Judge)
        pooled = self.network.features(pixels / 127.5 - 1)
        return Features(pooled, logits=self.network.readout(pooled))


def make_feature_net(name: str) -> FeatureNet:
    """Build inception[:FILE], dinov2[:FOLDER or hub name], efficientnet or judge:FOLDER, frozen, on the CPU.

    Without FILE, Inception's published weights are downloaded once to the cache folder.
    """
    kind, _, source = name.partition(":")
    if name in {"judge", "judge:"}:
        raise InputError("Expected the folder of a judge, written by save_judge; got none. Write judge:FOLDER.")
    if kind == "efficientnet" and source:
        raise InputError(f"Expected no file, since a package holds the weights; got {name!r}. Write efficientnet.")
    networks: Mapping[str, Callable[[], FeatureNet]] = {
        "inception": lambda: InceptionFeatures(load_inception(Path(source) if source else download_inception())),
        "dinov2": lambda: DinoV2Features(load_from_hub(source or DINOV2, {"dinov2"})),
        "efficientnet": lambda: EfficientNetFeatures(load_efficientnet()),
        "judge": lambda: JudgeFeatures(load_judge(Path(source))),
    }
    return choose(networks, kind, "feature network")()
