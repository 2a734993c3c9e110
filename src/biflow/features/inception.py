"""The Inception network of FID: TensorFlow's 2015-12-05 graph, with torch-fidelity's weights.

It differs from torchvision's in its weights, its 1,008 outputs, its pooling (averages exclude the padding, and the
last block takes a maximum) and its input, resized as in TensorFlow 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biflow.errors import InputError
from biflow.features.pretrained import freeze
from biflow.files import cache_folder
from biflow.tensors import read_state_dict

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d"  # prefix
INPUT_SIZE = 299
SPATIAL_CHANNELS = 7

Kernel = tuple[int, int]
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Branch(NamedTuple):
    """One branch of a block: optional pooling, then a sequence of convolutions (channels, kernel)."""

    name: str
    layers: Sequence[tuple[int, Kernel]]
    pool: str = ""  # "", "average" or "maximum"
    stride: int = 1  # of the last layer
    fork: int = 0  # channels of each of the parallel 1x3 and 3x1 convolutions at the end, 0 for none


class Convolution(nn.Module):
    """Convolution without bias, batch norm and ReLU; padded to keep the size, or unpadded."""

    def __init__(self, width_in: int, width: int, kernel: Kernel, *, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(width_in, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F', H', W')."""
        return self.bn(self.conv(x)).relu()


class Mixed(nn.Module):
    """Parallel branches, concatenated along the channels."""

    def __init__(self, width: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches, self.steps = branches, [self._add(width, branch) for branch in branches]
        ends = [branch.layers[-1][0] if branch.layers else width for branch in branches]
        self.width = sum(2 * branch.fork or end for branch, end in zip(branches, ends, strict=True))

    def _add(self, width: int, branch: Branch) -> list[list[str]]:
        """Add a branch's convolutions; returns their names by step, two names for a fork."""
        steps, several = [], len(branch.layers) + bool(branch.fork) > 1
        for i, (channels, kernel) in enumerate(branch.layers, start=1):
            stride = branch.stride if i == len(branch.layers) else 1
            name = f"{branch.name}_{i}" if several else branch.name
            self.add_module(name, Convolution(width, channels, kernel, stride=stride, padded=stride == 1))
            steps.append([name])
            width = channels
        if branch.fork:
            steps.append([f"{branch.name}_{len(branch.layers) + 1}{letter}" for letter in "ab"])
            for name, kernel in zip(steps[-1], ((1, 3), (3, 1)), strict=True):
                self.add_module(name, Convolution(width, branch.fork, kernel))
        return steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, width, H', W')."""
        return torch.cat([self._run(x, *each) for each in zip(self.branches, self.steps, strict=True)], dim=1)

    def _run(self, x: Tensor, branch: Branch, steps: list[list[str]]) -> Tensor:
        x = _pool(x, branch)
        for names in steps:
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x


def _pool(x: Tensor, branch: Branch) -> Tensor:
    if branch.pool == "average":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if branch.pool == "maximum":
        return F.max_pool2d(x, 3, stride=branch.stride, padding=1 if branch.stride == 1 else 0)
    return x


def _inception_a(pool_channels: int) -> list[Branch]:
    return [
        Branch("branch1x1", [(64, ONE)]),
        Branch("branch5x5", [(48, ONE), (64, FIVE)]),
        Branch("branch3x3dbl", [(64, ONE), (96, THREE), (96, THREE)]),
        Branch("branch_pool", [(pool_channels, ONE)], pool="average"),
    ]


def _inception_b() -> list[Branch]:
    return [
        Branch("branch3x3", [(384, THREE)], stride=2),
        Branch("branch3x3dbl", [(64, ONE), (96, THREE), (96, THREE)], stride=2),
        Branch("branch_pool", [], pool="maximum", stride=2),
    ]


def _inception_c(width: int) -> list[Branch]:
    double = [(width, ONE), (width, COLUMN), (width, ROW), (width, COLUMN), (192, ROW)]
    return [
        Branch("branch1x1", [(192, ONE)]),
        Branch("branch7x7", [(width, ONE), (width, ROW), (192, COLUMN)]),
        Branch("branch7x7dbl", double),
        Branch("branch_pool", [(192, ONE)], pool="average"),
    ]


def _inception_d() -> list[Branch]:
    return [
        Branch("branch3x3", [(192, ONE), (320, THREE)], stride=2),
        Branch("branch7x7x3", [(192, ONE), (192, ROW), (192, COLUMN), (192, THREE)], stride=2),
        Branch("branch_pool", [], pool="maximum", stride=2),
    ]


def _inception_e(pool: str) -> list[Branch]:
    return [
        Branch("branch1x1", [(320, ONE)]),
        Branch("branch3x3", [(384, ONE)], fork=384),
        Branch("branch3x3dbl", [(448, ONE), (384, THREE)], fork=384),
        Branch("branch_pool", [(192, ONE)], pool=pool),
    ]


class Inception(nn.Module):
    """Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) as used for FID, with torch-fidelity's parameter names."""

    WIDTH, NUM_CLASSES = 2048, 1008

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, THREE, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, THREE, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, THREE)
        self.Conv2d_3b_1x1 = Convolution(64, 80, ONE)
        self.Conv2d_4a_3x3 = Convolution(80, 192, THREE, padded=False)
        blocks = {"5b": _inception_a(32), "5c": _inception_a(64), "5d": _inception_a(64), "6a": _inception_b()}
        blocks |= {"6b": _inception_c(128), "6c": _inception_c(160), "6d": _inception_c(160), "6e": _inception_c(192)}
        blocks |= {"7a": _inception_d(), "7b": _inception_e("average"), "7c": _inception_e("maximum")}
        width = 192
        for name, branches in blocks.items():
            block = Mixed(width, branches)
            self.add_module(f"Mixed_{name}", block)
            width = block.width
        self.blocks = tuple(f"Mixed_{name}" for name in blocks)
        self.fc = nn.Linear(self.WIDTH, self.NUM_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 299, 299) in [-1, 1] -> pooled (B, 2048), spatial (B, 2023) and logits (B, 1008).

        Spatial features are the first 7 channels of TensorFlow's `mixed_6/conv` in row, column, channel order, for
        sFID (Nash et al. 2021, arXiv 2103.03841; guided-diffusion's evaluator). The logits omit the last layer's bias,
        as in the Inception Score of that evaluator and of torch-fidelity.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        spatial = x
        for name in self.blocks:
            if name == "Mixed_6d":
                spatial = self.get_submodule(f"{name}.branch1x1")(x)[:, :SPATIAL_CHANNELS]  # (B, 7, 17, 17)
            x = self.get_submodule(name)(x)
        pooled = x.mean(dim=(2, 3))  # over (B, 2048, 8, 8)
        return pooled, spatial.permute(0, 2, 3, 1).flatten(1), pooled @ self.fc.weight.T


def inception_input(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 255] -> the input of `Inception`, (B, 3, 299, 299), in about [-1, 1)."""
    return (resize_as_tensorflow1(pixels.float(), INPUT_SIZE) - 128) / 128


def resize_as_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Resize (B, P, H, W) -> (B, P, size, size) as TensorFlow 1's `resize_bilinear` without `align_corners`.

    Pixel i is sampled at i * H / size, without a half-pixel offset and without antialiasing.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        positions = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
        low = positions.long().clamp(max=length - 1)
        weight = (positions - low).to(images.dtype).unflatten(0, (size, *(1,) * (3 - dim)))
        lower, upper = (images.index_select(dim, each) for each in (low, (low + 1).clamp(max=length - 1)))
        images = lower + (upper - lower) * weight
    return images


def load_inception(path: Path) -> Inception:
    """Load the network from a file in torch-fidelity's layout, in float32, frozen and in eval mode."""
    loaded = read_state_dict(path, "torch-fidelity's Inception weights, weights-inception-2015-12-05-6726825d.pth")
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced
        network = Inception()
    counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    origin, hint = f"torch-fidelity's Inception weights in {path}", f"Give the file published at {WEIGHTS_URL}."
    return freeze(network, loaded | counts, origin=origin, hint=hint)


def download_inception(url: str = WEIGHTS_URL, sha256: str = WEIGHTS_SHA256) -> Path:
    """Path of the published weights (91 MB) in the cache folder; downloaded and verified on first use."""
    path = cache_folder() / "weights" / url.rpartition("/")[2]
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except RuntimeError:  # checksum mismatch
        raise InputError(
            f"Expected a file whose SHA-256 begins with {sha256} at {url}; got another. Give a copy: inception:PATH."
        ) from None
    except OSError as error:  # network or disk
        raise InputError(
            f"Expected to download {url} to {path.parent}; it failed ({error}). Download it elsewhere and give its "
            "path: inception:PATH."
        ) from None
    return path
