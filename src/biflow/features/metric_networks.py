"""Networks whose features of images are compared: Inception for FID, DINOv2 for FD-DINOv2, a judge of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.errors import InputError, choose
from biflow.features.inception import download_inception, inception_input, load_inception
from biflow.features.judge import Judge, load_judge
from biflow.features.pretrained import ImageNetInput, load_from_hub
from biflow.tensors import hash_tensors

DINOV2 = "facebook/dinov2-large"
DINOV2_INPUT = 224


class Features(NamedTuple):
    """What a network sees in images."""

    pooled: Tensor  # (B, F)
    spatial: Tensor | None = None  # (B, S), for sFID
    logits: Tensor | None = None  # (B, K), for the Inception Score


class FeatureNet(nn.Module):
    """A frozen network, with the way that it is given pixels; it computes in float32 whatever the surroundings."""

    name: str
    preprocessing: str
    channels = 3

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.checksum = hash_tensors(network.state_dict())
        self.eval().requires_grad_(False)

    def identity(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self.checksum

    def look(self, pixels: Tensor) -> Features:
        """Pixels (B, channels, H, W) of 0 to 255, in float32 and on the network's device -> features."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        """uint8 (B, P, H, W), P of 1 or 3 -> features, in float32 and on the network's device; grey is repeated."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in {1, self.channels}:
            raise InputError(
                f"Expected uint8 pixels (B, {' or '.join(str(each) for each in sorted({1, self.channels}))}, H, W) for "
                f"{self.name}; got {pixels.dtype} {tuple(pixels.shape)}. Give images as they are saved."
            )
        device = next(self.network.parameters()).device
        images = pixels.to(device).float().expand(-1, self.channels, -1, -1)
        with _full_precision(device.type):
            return self.look(images)

    def train(self, mode: bool = True) -> "FeatureNet":  # noqa: ARG002
        """A frozen network stays in eval mode."""
        return super().train(mode=False)


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Neither autocast nor the shortened mantissas that convolutions on GPUs take by default."""
    with torch.autocast(device, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class InceptionFeatures(FeatureNet):
    """Inception's pooled features (FID), spatial ones (sFID) and logits without bias (Inception Score)."""

    name = "inception"
    preprocessing = "bilinear to 299 as TensorFlow 1, (x - 128) / 128"

    def look(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, H, W) -> pooled (B, 2048), spatial (B, 2023), logits (B, 1008)."""
        return Features(*self.network(inception_input(pixels)))


class DinoV2Features(FeatureNet):
    """DINOv2's class token behind its last norm, as FD-DINOv2 compares it (Stein et al. 2023, arXiv 2306.04675)."""

    name = "dinov2"
    preprocessing = "bicubic to 224 as Pillow (antialiased, in whole levels), mean and deviation of ImageNet"

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        embeddings = network.embeddings
        positions = fit_positions(embeddings.position_embeddings, DINOV2_INPUT // network.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)
        self.normalise = ImageNetInput().eval()

    def look(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, H, W) -> pooled (B, F), of F = 1024 for ViT-L."""
        images = resize_as_pillow(pixels, DINOV2_INPUT) / 127.5 - 1
        seen = self.network(pixel_values=self.normalise(images))
        return Features(seen.last_hidden_state[:, 0])


def resize_as_pillow(images: Tensor, size: int) -> Tensor:
    """Pixels (B, P, H, W) of 0 to 255 -> (B, P, size, size): bicubic and antialiased, as Pillow does it.

    Pillow rounds to whole levels of 0 to 255 twice, behind the columns and behind the rows: so does this.  What lies
    half-way between two levels may be rounded otherwise, for fewer than one pixel in a hundred.
    """
    for shape in ((images.shape[2], size), (size, size)):
        images = (F.interpolate(images, shape, mode="bicubic", antialias=True) + 0.5).floor().clamp(0, 255)
    return images


def fit_positions(positions: Tensor, grid: int) -> Tensor:
    """Embeddings of a class and a square of places (1, 1 + h * h, C) -> (1, 1 + grid * grid, C), as DINOv2's own code.

    It scales by (grid + 0.1) / h, where transformers scales by grid / h: other positions by up to a tenth of a patch.
    """
    known = round((positions.shape[1] - 1) ** 0.5)
    if known == grid:
        return positions.detach()
    places = positions.detach()[:, 1:].unflatten(1, (known, known)).permute(0, 3, 1, 2)  # (1, C, h, h)
    places = F.interpolate(places, scale_factor=(grid + 0.1) / known, mode="bicubic")
    return torch.cat([positions.detach()[:, :1], places.flatten(2).transpose(1, 2)], dim=1)


class JudgeFeatures(FeatureNet):
    """What a judge sees: its last hidden layer, and its logits."""

    name = "judge"
    preprocessing = "x / 127.5 - 1, at the images' own size"

    def __init__(self, network: Judge) -> None:
        super().__init__(network)
        self.channels = network.channels

    def look(self, pixels: Tensor) -> Features:
        """Pixels (B, channels, H, W) -> pooled (B, F), logits (B, K)."""
        assert isinstance(self.network, Judge)
        pooled = self.network.features(pixels / 127.5 - 1)
        return Features(pooled, logits=self.network.readout(pooled))


def make_feature_net(name: str) -> FeatureNet:
    """The network of this name: inception[:FILE], dinov2[:FOLDER or hub name] or judge:FOLDER, frozen, on the CPU.

    Without a file, Inception's published weights are downloaded once, to the cache folder.
    """
    kind, _, place = name.partition(":")
    return choose({"inception": _inception, "dinov2": _dinov2, "judge": _judge}, kind, "feature network")(place)


def _inception(place: str) -> FeatureNet:
    return InceptionFeatures(load_inception(Path(place) if place else download_inception()))


def _dinov2(place: str) -> FeatureNet:
    return DinoV2Features(load_from_hub(place or DINOV2, {"dinov2"}))


def _judge(place: str) -> FeatureNet:
    if not place:
        raise InputError("Expected the folder of a judge, as save_judge writes it; got none. Write judge:FOLDER.")
    return JudgeFeatures(load_judge(Path(place)))
