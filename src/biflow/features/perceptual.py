"""Perceptual distances by frozen networks: EfficientNet, VGG-16, LPIPS, ConvNeXt V2, DINOv2 or any torch module."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.config import DistanceConfig
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.efficientnet import INPUT_SIZE, load_efficientnet
from biflow.features.pretrained import DEFAULT_INPUT, Frozen, ImageNetInput, freeze, load_from_hub, load_module
from biflow.losses.perceptual import WHOLE, Window, absolute_distance, direction_distance, full, squared_distance
from biflow.tensors import describe_faults, read_state_dict, shapes

Compare = Callable[[Tensor, Tensor], Tensor]
"""(images, target), each (B, P, H, W) in [-1, 1] -> (B,)."""


class ImageDistance(Frozen):
    """A distance between images, on the same crop of both resized to `input_size`, or on whole images without one."""

    def __init__(self, compare: Compare, input_size: int | None = None) -> None:
        super().__init__()
        self.compare = compare
        self.input_size = input_size

    def forward(self, images: Tensor, target: Tensor, window: Window) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,); no gradient through the target."""
        if self.input_size:
            images, target = (crop_and_resize(each, window, self.input_size) for each in (images, target.detach()))
        return self.compare(images, target.detach())

    def features(self, images: Tensor) -> Tensor:
        """Features of whole images (B, P, H, W), averaged over positions: (B, F); of networks only."""
        assert isinstance(self.compare, FeatureDistance | MapDistance)
        return self.compare.features(crop_and_resize(images, WHOLE, self.input_size) if self.input_size else images)


def crop_and_resize(images: Tensor, window: Window, size: int) -> Tensor:
    """Crop images (B, P, H, W) to the window and resize to (B, P, size, size), bicubic with antialiasing."""
    height, width = images.shape[-2:]
    rows, columns = max(1, round(window[2] * height)), max(1, round(window[3] * width))
    top, left = min(round(window[0] * height), height - rows), min(round(window[1] * width), width - columns)
    crop = images[..., top : top + rows, left : left + columns]
    return F.interpolate(full(crop), (size, size), mode="bicubic", antialias=True)


def make_distance(config: DistanceConfig, *, classifier: Classifier | None = None) -> ImageDistance:
    """Build the distance of a config, with frozen pretrained weights."""
    match config.kind:
        case "mse":
            return ImageDistance(squared_distance)
        case "l1":
            return ImageDistance(absolute_distance)
        case "classifier":
            assert classifier is not None
            distance = ImageDistance(MapDistance(classifier.maps, network=classifier))
        case "efficientnet":
            efficientnet = load_efficientnet()
            compare = MapDistance(efficientnet.maps, network=efficientnet)
            distance = ImageDistance(compare, config.input_size or INPUT_SIZE)
        case "vgg" | "lpips":
            distance = ImageDistance(load_vgg_distance(config), config.input_size or DEFAULT_INPUT)
        case "convnextv2" | "dinov2":
            distance = load_hub_distance(config)
        case "module":
            assert config.network is not None
            distance = ImageDistance(FeatureDistance(load_module(config.network)), config.input_size)
    return distance.eval().requires_grad_(False)


class FeatureDistance(nn.Module):
    """Mean squared difference of a network's outputs, averaged if there are several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,)."""
        with torch.no_grad():
            expected = _as_sequence(self.network(target))
        features = _as_sequence(self.network(images))
        return torch.stack([squared_distance(a, b) for a, b in zip(features, expected, strict=True)]).mean(dim=0)

    def features(self, images: Tensor) -> Tensor:
        """Outputs (B, F), (B, positions, F) or (B, F, H, W), averaged over positions and joined: (B, F)."""
        found = [full(each) for each in _as_sequence(self.network(images))]
        positions: dict[int, tuple[int, ...]] = {3: (1,), 4: (2, 3)}
        return torch.cat([each.mean(dim=positions[each.ndim]) if each.ndim > 2 else each for each in found], dim=1)


class MapDistance(nn.Module):
    """Squared distance between unit-normalised feature maps, optionally with LPIPS' calibration."""

    def __init__(
        self, maps: Callable[[Tensor], Sequence[Tensor]], *, network: nn.Module, calibration: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.maps, self.network = maps, network
        self.calibration = nn.ParameterList(calibration)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images and target (B, P, H, W) in [-1, 1] -> (B,)."""
        with torch.no_grad():
            expected = self.maps(target)
        return direction_distance(self.maps(images), expected, list(self.calibration) or None)

    def features(self, images: Tensor) -> Tensor:
        """Every map averaged over positions, joined: images (B, P, H, W) -> (B, F)."""
        return torch.cat([full(each).mean(dim=(2, 3)) for each in self.maps(images)], dim=1)


class VGG16(nn.Module):
    """The convolutional part of VGG-16 (Simonyan and Zisserman 2015), with torchvision's parameter names."""

    CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.outputs: list[int] = []  # indices of the layers whose outputs are returned, the last of each stage
        width = 3
        for stage in self.CONVOLUTIONS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in stage:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.outputs.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> one feature map (B, F, H / 2^i, W / 2^i) per stage i."""
        maps = []
        for i, layer in enumerate(self.features):
            images = layer(images)
            if i in self.outputs:
                maps.append(images)
        return maps


def load_vgg_distance(config: DistanceConfig) -> MapDistance:
    """Build the VGG-16 distance from torchvision's weights, or LPIPS with its calibration file."""
    assert config.network is not None
    with torch.device("meta"):
        trunk = VGG16()
    loaded = read_state_dict(Path(config.network), "torchvision's VGG-16 weights, such as vgg16-397923af.pth")
    loaded = {name: tensor for name, tensor in loaded.items() if name.startswith("features.")}
    freeze(trunk, loaded, origin=f"torchvision's VGG-16 weights in {config.network}")
    network = nn.Sequential(ImageNetInput(), trunk)
    calibration = read_calibration(Path(config.calibration)) if config.calibration else ()
    return MapDistance(network, network=network, calibration=calibration)


def read_calibration(path: Path) -> list[Tensor]:
    """Load LPIPS' channel weights for VGG-16, one (F,) per stage, from its v0.1 vgg.pth."""
    loaded = read_state_dict(path, "LPIPS' linear layers for VGG-16, vgg.pth of version 0.1")
    widths = [stage[-1] for stage in VGG16.CONVOLUTIONS]
    expected = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    if faults := describe_faults(expected, shapes(loaded)):
        raise InputError(f"Expected LPIPS' linear layers for VGG-16 in {path}; {faults}.")
    return [loaded[name].flatten() for name in expected]


class HubFeatures(nn.Module):
    """Features of a network from transformers, pooled or per position."""

    def __init__(self, network: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.normalise, self.network, self.pooled = ImageNetInput(), network, pooled

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> (B, F) or (B, positions, F)."""
        output = self.network(pixel_values=self.normalise(images))
        return output.pooler_output if self.pooled else output.last_hidden_state


def load_hub_distance(config: DistanceConfig) -> ImageDistance:
    """Build the distance on ConvNeXt V2's pooled features or DINOv2's tokens, both after the last norm."""
    assert config.network is not None
    convolutional = config.kind == "convnextv2"
    families = {"convnextv2"} if convolutional else {"dinov2", "dinov2_with_registers"}
    network = load_from_hub(config.network, families)
    compare = FeatureDistance(HubFeatures(network, pooled=convolutional))
    return ImageDistance(compare, config.input_size or min(network.config.image_size, DEFAULT_INPUT))


def _as_sequence(features: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features
