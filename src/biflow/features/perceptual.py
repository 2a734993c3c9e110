"""Frozen networks that say how far apart two images look: VGG-16 and LPIPS, ConvNeXt V2, DINOv2, any module."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.config import DistanceConfig
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.pretrained import ImageNetInput, load_from_hub, load_module
from biflow.losses.perceptual import Window, absolute_distance, direction_distance, full, squared_distance
from biflow.tensors import describe_faults, read_state_dict, shapes

USUAL_INPUT = 224  # the side of the square that networks of ImageNet are mostly given

Compare = Callable[[Tensor, Tensor], Tensor]
"""(images, target), each (B, P, H, W) in [-1, 1] -> (B,)."""


class ImageDistance(nn.Module):
    """A distance between images, seen through a part of both that is scaled to `input_size`, or whole without one."""

    def __init__(self, compare: Compare, input_size: int | None = None) -> None:
        super().__init__()
        self.compare = compare
        self.input_size = input_size

    def forward(self, images: Tensor, target: Tensor, window: Window) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,); the gradient flows into images alone."""
        if self.input_size:
            images, target = (see_through(each, window, self.input_size) for each in (images, target.detach()))
        return self.compare(images, target.detach())

    def train(self, mode: bool = True) -> "ImageDistance":  # noqa: ARG002
        """Frozen networks stay in eval mode."""
        return super().train(mode=False)


def see_through(images: Tensor, window: Window, size: int) -> Tensor:
    """The window's part of images (B, P, H, W), scaled to (B, P, size, size) by antialiased bicubic interpolation."""
    height, width = images.shape[-2:]
    rows, columns = max(1, round(window[2] * height)), max(1, round(window[3] * width))
    top, left = min(round(window[0] * height), height - rows), min(round(window[1] * width), width - columns)
    part = images[..., top : top + rows, left : left + columns]
    return F.interpolate(full(part), (size, size), mode="bicubic", antialias=True)


def make_distance(config: DistanceConfig, *, classifier: Classifier | None = None) -> ImageDistance:
    """The distance that a config describes, with its weights loaded and frozen."""
    match config.kind:
        case "mse":
            return ImageDistance(squared_distance)
        case "l1":
            return ImageDistance(absolute_distance)
        case "classifier":
            assert classifier is not None
            distance = ImageDistance(MapDistance(classifier.maps, holds=classifier))
        case "vgg" | "lpips":
            distance = ImageDistance(load_vgg_distance(config), config.input_size or USUAL_INPUT)
        case "convnextv2" | "dinov2":
            distance = load_hub_distance(config)
        case "module":
            assert config.network is not None
            distance = ImageDistance(FeatureDistance(load_module(config.network)), config.input_size)
    return distance.eval().requires_grad_(False)


class FeatureDistance(nn.Module):
    """Mean squared difference of what a network makes of two images, the mean over its outputs if it has several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,)."""
        with torch.no_grad():
            wanted = _several(self.network(target))
        seen = _several(self.network(images))
        return torch.stack([squared_distance(a, b) for a, b in zip(seen, wanted, strict=True)]).mean(dim=0)


class MapDistance(nn.Module):
    """Squared distance between the directions of feature maps, with LPIPS' calibration if there is one."""

    def __init__(
        self,
        maps: Callable[[Tensor], Sequence[Tensor]],
        *,
        holds: nn.Module,
        calibration: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.maps, self.network = maps, holds
        self.layers = 0 if calibration is None else len(calibration)
        for i, weights in enumerate(calibration or ()):
            self.register_buffer(f"calibration{i}", weights)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,)."""
        with torch.no_grad():
            wanted = self.maps(target)
        calibration = [self.get_buffer(f"calibration{i}") for i in range(self.layers)]
        return direction_distance(self.maps(images), wanted, calibration or None)


class VGG16(nn.Module):
    """The convolutions of VGG-16 (Simonyan and Zisserman 2015), named as in torchvision's files of weights."""

    CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.read: list[int] = []  # places whose output is a map: the last of every stage
        width = 3
        for stage in self.CONVOLUTIONS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for wider in stage:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
            self.read.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W), normalised -> one map (B, F, H / 2^i, W / 2^i) for every stage i."""
        maps = []
        for place, layer in enumerate(self.features):
            images = layer(images)
            if place in self.read:
                maps.append(images)
        return maps


def load_vgg_distance(config: DistanceConfig) -> MapDistance:
    """The distance of VGG-16's maps, from torchvision's file, calibrated if the config names LPIPS' file."""
    assert config.network is not None
    trunk = VGG16()
    found = read_state_dict(Path(config.network), "torchvision's VGG-16 weights, such as vgg16-397923af.pth")
    found = {name: tensor for name, tensor in found.items() if name.startswith("features.")}
    if faults := describe_faults(shapes(trunk.state_dict()), shapes(found)):
        raise InputError(f"Expected torchvision's VGG-16 weights in {config.network}; {faults}.")
    trunk.load_state_dict(found)
    calibration = None
    if config.kind == "lpips":
        assert config.calibration is not None
        calibration = read_calibration(Path(config.calibration))
    network = nn.Sequential(ImageNetInput(), trunk)
    return MapDistance(network, holds=network, calibration=calibration)


def read_calibration(path: Path) -> list[Tensor]:
    """LPIPS' weights of VGG-16's channels, one (F,) for each stage, from its file (v0.1, vgg.pth)."""
    found = read_state_dict(path, "LPIPS' linear layers for VGG-16, vgg.pth of version 0.1")
    widths = [stage[-1] for stage in VGG16.CONVOLUTIONS]
    expected = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    if faults := describe_faults(expected, shapes(found)):
        raise InputError(f"Expected LPIPS' linear layers for VGG-16 in {path}; {faults}.")
    return [found[name].flatten() for name in expected]


class HubFeatures(nn.Module):
    """What a network of transformers says of an image: its pooled features, or those of every place."""

    def __init__(self, network: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.normalise, self.network, self.pooled = ImageNetInput(), network, pooled

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> (B, F) or (B, places, F)."""
        seen = self.network(pixel_values=self.normalise(images))
        return seen.pooler_output if self.pooled else seen.last_hidden_state


def load_hub_distance(config: DistanceConfig) -> ImageDistance:
    """ConvNeXt V2's pooled features, or DINOv2's tokens, both behind the network's last norm."""
    assert config.network is not None
    convolutional = config.kind == "convnextv2"
    families = {"convnextv2"} if convolutional else {"dinov2", "dinov2_with_registers"}
    network = load_from_hub(config.network, families)
    compare = FeatureDistance(HubFeatures(network, pooled=convolutional))
    return ImageDistance(compare, config.input_size or min(network.config.image_size, USUAL_INPUT))


def _several(features: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features
