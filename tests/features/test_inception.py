"""FID's Inception: its layout, its differences from torchvision's, and files that are not its weights."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from biflow.errors import InputError
from biflow.features import inception
from biflow.features.inception import (
    Inception,
    download_inception,
    inception_input,
    load_inception,
    resize_as_tensorflow1,
)

PUBLISHED = {  # a few of the published names, one or more of every kind of block
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_1.conv.weight": (64, 288, 1, 1),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
    "Mixed_6d.branch1x1.conv.weight": (192, 768, 1, 1),
    "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch3x3_2.conv.weight": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
    "Mixed_7c.branch_pool.bn.bias": (192,),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


def random_weights() -> dict[str, torch.Tensor]:
    """Weights in the published layout that keep the variance from layer to layer, with means and deviations of use."""
    with torch.device("meta"):
        layout = Inception().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, like in layout.items():
        if name.endswith("num_batches_tracked"):  # the published file has none
            continue
        noise = torch.randn(like.shape, generator=generator)
        if name.endswith(("conv.weight", "fc.weight")):
            state[name] = noise * (2 / like[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + 0.1 * noise.abs()
        else:
            state[name] = 0.1 * noise
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_weights(), path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return load_inception(weights)


def pixels(count: int = 2, size: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)).byte()


def test_the_layout_is_the_published_one(network):
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: shapes.get(name) for name in PUBLISHED} == PUBLISHED
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960


def test_what_is_loaded_is_what_was_saved_frozen_and_without_a_random_number(weights):
    before = torch.random.get_rng_state()
    network = load_inception(weights)
    assert torch.equal(torch.random.get_rng_state(), before)
    state, saved = network.state_dict(), torch.load(weights, weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


@torch.no_grad()
def test_the_outputs_are_pooled_spatial_and_without_bias(network):
    read = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: read.update({name: out}))
        for name in ("Mixed_6c", "Mixed_6d", "Mixed_7c")
    ]
    pooled, spatial, logits = network(inception_input(pixels()))
    for hook in hooks:
        hook.remove()
    assert [tuple(each.shape) for each in (pooled, spatial, logits)] == [(2, 2048), (2, 2023), (2, 1008)]
    assert read["Mixed_7c"].shape == (2, 2048, 8, 8)
    torch.testing.assert_close(pooled, read["Mixed_7c"].flatten(2).mean(2))
    torch.testing.assert_close(logits, network.fc(pooled) - network.fc.bias, rtol=1e-4, atol=1e-4)
    # the first branch of a block is the first of its channels; TensorFlow's order is row, column, channel
    assert read["Mixed_6d"].shape == (2, 768, 17, 17)
    torch.testing.assert_close(spatial.view(2, 17, 17, 7), read["Mixed_6d"][:, :7].permute(0, 2, 3, 1))
    assert (spatial > 0).any()
    assert (spatial >= 0).all()


def convolve(x, state, name, **options):
    """A convolution, a normalisation with TensorFlow's 0.001 and a ReLU, from the published tensors alone."""
    x = F.conv2d(x, state[f"{name}.conv.weight"], **options)
    mean, variance, scale, shift = (
        state[f"{name}.bn.{each}"][:, None, None] for each in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (variance + 0.001).sqrt() * scale + shift).relu()


@torch.no_grad()
def test_the_first_layers_are_those_of_their_tensors(network):
    state, images = network.state_dict(), inception_input(pixels(1))
    expected = convolve(images, state, "Conv2d_1a_3x3", stride=2)
    assert expected.shape[-1] == 149
    torch.testing.assert_close(network.Conv2d_1a_3x3(images), expected, rtol=1e-4, atol=1e-5)


def average(x):
    """The mean of the up to nine positions around each that lie inside the map."""
    rows, columns = x.shape[-2:]
    out = torch.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            out[..., i, j] = x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(dim=(2, 3))
    return out


@torch.no_grad()
@pytest.mark.parametrize(("name", "width", "pooled"), [("5b", 192, 32), ("6b", 768, 192), ("7b", 1280, 192)])
def test_averages_exclude_the_padding(network, name, width, pooled):
    state, x = network.state_dict(), torch.rand(1, width, 8, 8, generator=torch.Generator().manual_seed(0))
    block = network.get_submodule(f"Mixed_{name}")
    expected = convolve(average(x), state, f"Mixed_{name}.branch_pool")
    torch.testing.assert_close(block(x)[:, -pooled:], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_block_takes_maxima(network):
    state, x = network.state_dict(), torch.rand(1, 2048, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = convolve(F.max_pool2d(x, 3, stride=1, padding=1), state, "Mixed_7c.branch_pool")
    torch.testing.assert_close(network.Mixed_7c(x)[:, -192:], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forks_are_joined_in_order(network):
    state, x = network.state_dict(), torch.rand(1, 2048, 8, 8, generator=torch.Generator().manual_seed(0))
    middle = convolve(x, state, "Mixed_7c.branch3x3_1")
    row = convolve(middle, state, "Mixed_7c.branch3x3_2a", padding=(0, 1))
    column = convolve(middle, state, "Mixed_7c.branch3x3_2b", padding=(1, 0))
    expected = torch.cat([convolve(x, state, "Mixed_7c.branch1x1"), row, column], dim=1)
    torch.testing.assert_close(network.Mixed_7c(x)[:, : 320 + 768], expected, rtol=1e-4, atol=1e-5)


BRANCHES = {  # in the order of their channels: how many convolutions of which numbers, and the stride of the last
    "5c": (256, 1, {"branch1x1": 0, "branch5x5": 2, "branch3x3dbl": 3}),
    "6a": (288, 2, {"branch3x3": 0, "branch3x3dbl": 3}),
    "6c": (768, 1, {"branch1x1": 0, "branch7x7": 3, "branch7x7dbl": 5}),
    "7a": (768, 2, {"branch3x3": 2, "branch7x7x3": 4}),
}


@torch.no_grad()
@pytest.mark.parametrize("block", BRANCHES)
def test_a_block_is_its_branches_in_their_published_order(network, block):
    width, stride, branches = BRANCHES[block]
    state, name = network.state_dict(), f"Mixed_{block}"
    x = torch.rand(1, width, 17, 17, generator=torch.Generator().manual_seed(0))
    ends = []
    for branch, count in branches.items():
        y = x
        parts = [f"{branch}_{i + 1}" for i in range(count)] or [branch]
        for part in parts:
            kernel = state[f"{name}.{part}.conv.weight"].shape[2:]
            last = stride == 2 and part == parts[-1]
            options = {"stride": 2} if last else {"padding": tuple(side // 2 for side in kernel)}
            y = convolve(y, state, f"{name}.{part}", **options)
        ends.append(y)
    if stride == 1:
        ends.append(convolve(average(x), state, f"{name}.branch_pool"))
    else:
        ends.append(F.max_pool2d(x, 3, stride=2))
    torch.testing.assert_close(network.get_submodule(name)(x), torch.cat(ends, dim=1), rtol=1e-4, atol=1e-4)


def read_as_tensorflow1(image: np.ndarray, size: int) -> np.ndarray:
    """One channel, pixel by pixel, in float32."""
    out = np.empty((size, size), np.float32)
    scales = [np.float32(length) / np.float32(size) for length in image.shape]
    for i in range(size):
        for j in range(size):
            at = np.float32([i, j]) * np.float32(scales)
            (y, x), (dy, dx) = at.astype(int), at - at.astype(int)
            below, right = min(y + 1, image.shape[0] - 1), min(x + 1, image.shape[1] - 1)
            top = image[y, x] + (image[y, right] - image[y, x]) * dx
            bottom = image[below, x] + (image[below, right] - image[below, x]) * dx
            out[i, j] = top + (bottom - top) * dy
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 19), (32, 32, 75), (21, 13, 8), (10, 10, 10), (1, 3, 5)])
def test_images_are_scaled_as_by_tensorflow_1(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.float32)
    found = resize_as_tensorflow1(torch.from_numpy(image)[None, None], size)[0, 0]
    np.testing.assert_allclose(found.numpy(), read_as_tensorflow1(image, size), atol=1e-4)


def test_scaling_starts_at_the_first_pixel_and_not_half_a_pixel_inside():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize_as_tensorflow1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert not torch.equal(resize_as_tensorflow1(ramp, 8), F.interpolate(ramp, 8, mode="bilinear"))


def test_pixels_become_what_the_network_was_trained_on():
    grey = torch.tensor([0, 128, 255]).byte()[None, :, None, None].expand(1, 3, 2, 2)
    assert inception_input(grey)[0, :, 0, 0].tolist() == [-1, 0, 127 / 128]
    assert inception_input(grey).shape == (1, 3, 299, 299)


def test_files_that_are_not_these_weights_are_one_sentence(weights, tmp_path):
    with pytest.raises(InputError, match=r"6726825d.pth; cannot read .*nothing.pth \(No such file"):
        load_inception(tmp_path / "nothing.pth")
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(
        InputError, match=r"fc.weight has shape \(1000, 2048\), not \(1008, 2048\). Give the file published"
    ):
        load_inception(tmp_path / "other.pth")
    del state["Mixed_5b.branch1x1.bn.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"Mixed_5b.branch1x1.bn.bias is missing"):
        load_inception(tmp_path / "part.pth")
    (tmp_path / "damaged.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="Copy it again"):
        load_inception(tmp_path / "damaged.pth")


def test_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "weights-of-somebody.pth"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    with pytest.raises(InputError, match=r"SHA-256 begins with 6726825d at file:.*; got another"):
        download_inception(source.as_uri())
    kept = download_inception(source.as_uri(), digest)
    assert kept == tmp_path / "cache" / "biflow" / "weights" / source.name
    assert kept.read_bytes() == b"weights"
    source.unlink()
    assert download_inception(source.as_uri(), digest) == kept
    with pytest.raises(InputError, match=r"Download it elsewhere and give its path: inception:PATH"):
        download_inception((tmp_path / "nothing.pth").as_uri())
    assert [path.name for path in kept.parent.iterdir()] == [source.name]


def test_features_are_those_of_torch_fidelity(weights, network):
    other = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity (with torchvision) is not installed"
    )
    names = ["2048", "logits_unbiased"]
    theirs = other.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=str(weights))
    with torch.no_grad():
        pooled, _, logits = network(inception_input(pixels()))
        for ours, expected in zip((pooled, logits), theirs(pixels()), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_published_address_names_its_checksum():
    assert inception.WEIGHTS_URL.endswith(f"-{inception.WEIGHTS_SHA256}.pth")
