"""Perceptual distances, on small checkpoints of the real architectures that are saved and loaded."""

import shutil

import pytest
import torch
from torch import nn

from biflow.config import DistanceConfig
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.perceptual import VGG16, crop_and_resize, make_distance
from biflow.losses.perceptual import WHOLE

MIDDLE = (0.25, 0.25, 0.5, 0.5)


class Halves(nn.Module):
    """A user's network: the mean of each half of the rows."""

    def forward(self, images):
        return list(images.mean(dim=(1, 3)).chunk(2, dim=1))


IDENTITY = nn.Identity()
NUMBER = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files and folders of every kind of network, with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    trunk = VGG16().state_dict()
    torch.save({**trunk, "classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
    lines = {f"lin{i}.model.1.weight": torch.rand(1, stage[-1], 1, 1) for i, stage in enumerate(VGG16.CONVOLUTIONS)}
    torch.save(lines, folder / "lpips.pth")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 24}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dinov2")
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32}
    transformers.ConvNextV2Model(transformers.ConvNextV2Config(**sizes)).save_pretrained(folder / "convnextv2")
    return folder


def config_of(kind: str, files) -> DistanceConfig:
    networks = {"vgg": "vgg16.pth", "lpips": "vgg16.pth", "dinov2": "dinov2", "convnextv2": "convnextv2"}
    network = str(files / networks[kind]) if kind in networks else None
    if kind == "module":
        network = f"{__name__}:Halves"
    calibration = str(files / "lpips.pth") if kind == "lpips" else None
    return DistanceConfig(
        kind=kind, network=network, calibration=calibration, input_size=32 if "p" in kind or kind == "vgg" else None
    )


def images(seed: int, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


KINDS = ["mse", "l1", "vgg", "lpips", "convnextv2", "dinov2", "efficientnet", "module"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_one_number_per_image_without_gradient_through_the_target(kind, channels, files):
    distance = make_distance(config_of(kind, files))
    distance.train()
    ours, theirs = images(0, channels).requires_grad_(), images(1, channels).requires_grad_()
    found = distance(ours, theirs, WHOLE)
    assert found.shape == (2,)
    assert (found > 0).all()
    found.sum().backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad is None
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    torch.testing.assert_close(distance(ours, ours, WHOLE), torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_of_an_image_does_not_depend_on_its_batch(kind, files):
    distance = make_distance(config_of(kind, files))
    whole = distance(images(0), images(1), MIDDLE)
    alone = distance(images(0)[:1], images(1)[:1], MIDDLE)
    torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-6)


def test_the_same_folder_gives_the_same_distance(files):
    for kind in ("lpips", "dinov2", "convnextv2"):
        first, second = (make_distance(config_of(kind, files))(images(0), images(1), WHOLE) for _ in range(2))
        assert torch.equal(first, second)


def test_vgg_equals_torchvisions_layers(files):
    """The third map is the output of the seventh convolution, after its ReLU and two poolings."""
    state = torch.load(files / "vgg16.pth", weights_only=True)
    trunk = VGG16()
    trunk.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith("features.")})
    x = images(0)
    for place in (0, 2, "pool", 5, 7, "pool", 10, 12, 14):
        if place == "pool":
            x = torch.max_pool2d(x, 2)
        else:
            x = torch.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1).relu()
    torch.testing.assert_close(trunk(images(0))[2], x)
    assert [each.shape[1] for each in trunk(images(0))] == [64, 128, 256, 512, 512]


def test_a_users_module_is_compared_by_the_mean_of_its_outputs():
    distance = make_distance(DistanceConfig(kind="module", network=f"{__name__}:Halves"))
    ours, theirs = Halves()(images(0)), Halves()(images(1))
    expected = sum((a - b).square().mean(dim=1) for a, b in zip(ours, theirs, strict=True)) / 2
    torch.testing.assert_close(distance(images(0), images(1), WHOLE), expected)


def test_both_images_are_cropped_to_the_same_window():
    distance = make_distance(DistanceConfig(kind="module", network=f"{__name__}:IDENTITY", input_size=8))
    ours, theirs = images(0), images(0)
    theirs[..., :4, :] = 0  # outside the window
    torch.testing.assert_close(distance(ours, theirs, MIDDLE), torch.zeros(2))
    assert (distance(ours, theirs, WHOLE) > 0).all()


def test_a_window_keeps_its_contents():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    torch.testing.assert_close(crop_and_resize(ramp, MIDDLE, 8), torch.arange(4.0, 12.0).expand(1, 1, 8, 8))
    assert crop_and_resize(ramp, (0.99, 0.99, 0.01, 0.01), 4).unique().tolist() == pytest.approx([15.0])


def test_the_classifiers_maps_are_compared():
    torch.manual_seed(0)
    classifier = Classifier(1, 3)
    distance = make_distance(DistanceConfig(kind="classifier"), classifier=classifier)
    found = distance(images(0, 1, 8), images(1, 1, 8), WHOLE)
    assert found.shape == (2,)
    assert (found > 0).all()
    assert [tuple(each.shape[1:]) for each in classifier.maps(images(0, 1, 8))] == [(32, 8, 8), (64, 4, 4)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "vgg", "network": "missing.pth"}, r"vgg16-397923af.pth; cannot read missing.pth \(No such file"),
        (
            {"kind": "dinov2", "network": "nobody/nothing"},
            "'nobody/nothing' to be a local folder or a reachable name on the",
        ),
        ({"kind": "module", "network": "biflow.nothing:Here"}, "importable as 'package.module:name'"),
        ({"kind": "module", "network": "biflow.errors"}, "of a torch module or its factory"),
        ({"kind": "module", "network": f"{__name__}:NUMBER"}, "of a torch module or its factory"),
    ],
)
def test_missing_networks_are_one_sentence(config, message):
    with pytest.raises(InputError, match=message):
        make_distance(DistanceConfig(**config))


def test_files_of_another_kind_are_refused(files, tmp_path):
    lpips, vgg = str(files / "lpips.pth"), str(files / "vgg16.pth")
    with pytest.raises(InputError, match=r"VGG-16 weights in .*features.0.bias is missing"):
        make_distance(DistanceConfig(kind="vgg", network=lpips))
    with pytest.raises(InputError, match=r"linear layers for VGG-16 in .*features.0.bias is not expected"):
        make_distance(DistanceConfig(kind="lpips", network=vgg, calibration=vgg))
    with pytest.raises(InputError, match=r"of type dinov2 or dinov2_with_registers; .* is of type 'convnextv2'"):
        make_distance(DistanceConfig(kind="dinov2", network=str(files / "convnextv2")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Copy the whole folder"):
        make_distance(DistanceConfig(kind="convnextv2", network=str(tmp_path)))


def test_a_checkpoint_with_a_layer_missing_is_refused(files, tmp_path):
    """transformers would initialise the missing weights at random."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(files / "dinov2", tmp_path / "dinov2")
    weights = load_file(tmp_path / "dinov2" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, tmp_path / "dinov2" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"are missing or of another shape, first .*layer\.1\."):
        make_distance(DistanceConfig(kind="dinov2", network=str(tmp_path / "dinov2")))


def test_weights_are_float32_whatever_the_file_holds(files, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.AutoModel.from_pretrained(files / "convnextv2").half().save_pretrained(tmp_path)
    distance = make_distance(DistanceConfig(kind="convnextv2", network=str(tmp_path)))
    assert {parameter.dtype for parameter in distance.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "vgg", "network": "a", "calibration": "b"}, "no calibration for the distance 'vgg'"),
        ({"kind": "mse", "network": "a", "input_size": 8}, "no input_size or network for the distance 'mse'"),
        ({"kind": "lpips", "network": "a"}, "Expected calibration for the distance 'lpips'"),
        ({"kind": "module"}, "Expected network for the distance 'module'"),
        ({"kind": "classifier", "space": "images"}, "Expected space=latents"),
    ],
)
def test_unused_settings_are_refused_and_missing_ones_requested(config, message):
    with pytest.raises(ValueError, match=message):
        DistanceConfig(**config)
