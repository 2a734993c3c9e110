"""Encoders of every family, as small checkpoints of the real architectures that are saved and loaded."""

import pytest
import torch
from torch import nn

from biflow.config import AlignConfig
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder, on_grid

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PLACES = [[1, 1]]


class Pairs(nn.Module):
    """A user's encoder: the mean of every two rows and columns, as tokens."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 2).flatten(2).transpose(1, 2)


def triple() -> nn.Module:
    return nn.Flatten(2)  # (B, P, H * W): three "tokens" for RGB


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8}
    networks = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **vision)),
        "registers": transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, **vision, num_register_tokens=4)
        ),
        "dinov3": transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES, **vision, num_register_tokens=4)),
        "clip": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **vision)),
        "mae": transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES, **vision)),
    }
    for name, network in networks.items():
        network.save_pretrained(root / name)
    return root


def encoder_of(name, folders):
    kind = "dinov2" if name == "registers" else name
    return make_encoder(AlignConfig(encoder=kind, network=str(folders / name), layers=PLACES))


def images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


FAMILIES = ["dinov2", "registers", "dinov3", "clip", "mae"]


@pytest.mark.parametrize("name", FAMILIES)
def test_patch_features_lie_on_the_grid_of_the_image(name, folders):
    """Changing half of the image changes the other half's features less; class and register tokens are dropped."""
    encoder = encoder_of(name, folders)
    before = images()
    features = encoder(before)
    assert features.shape == (2, 16, 4, 4)
    after = before.clone()
    after[..., :16] = -after[..., :16]
    change = (encoder(after) - features).square().mean(dim=(0, 1))  # (4, 4)
    assert change[:, :2].mean() > 2 * change[:, 2:].mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_same_each_time_and_for_each_size_and_frozen(name, folders):
    encoder = encoder_of(name, folders)
    encoder.train()
    assert torch.equal(encoder(images()), encoder(images()))
    assert encoder(images(channels=1, size=8)).shape == (2, 16, 4, 4)
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(images().requires_grad_()).requires_grad


def test_a_masked_autoencoder_keeps_the_order_of_its_patches(folders):
    """By default it shuffles its patches; unshuffled, the features are equal."""
    encoder = encoder_of("mae", folders)
    network = encoder.network
    shuffled = network.network(pixel_values=network.normalise(images()))
    order = shuffled.ids_restore[:, :, None].expand(-1, -1, 16)
    expected = shuffled.last_hidden_state[:, 1:].gather(1, order)
    torch.testing.assert_close(network(images()), expected)


def test_a_users_module_and_the_classifier_are_encoders():
    pairs = make_encoder(AlignConfig(encoder="module", network=f"{__name__}:Pairs", layers=PLACES))
    assert pairs(images()).shape == (2, 3, 16, 16)
    torch.testing.assert_close(pairs(images()), torch.nn.functional.avg_pool2d(images(), 2))
    torch.manual_seed(0)
    classifier = make_encoder(AlignConfig(layers=PLACES), classifier=Classifier(1, 3))
    assert classifier(images(1, 8)).shape == (2, 64, 4, 4)


def test_patches_that_form_no_square_are_refused():
    with pytest.raises(InputError, match="form a square; got 3 tokens"):
        on_grid(torch.zeros(1, 3, 5))


def test_an_encoder_of_another_family_is_refused(folders):
    with pytest.raises(InputError, match=r"of type clip or clip_vision_model; .* is of type 'dinov2'"):
        make_encoder(AlignConfig(encoder="clip", network=str(folders / "dinov2"), layers=PLACES))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": []}, "one or more different layers"),
        ({"layers": [[1, 1], [1, 1]]}, "one or more different layers"),
        ({"layers": PLACES, "encoder": "dinov2"}, "Expected network for the encoder 'dinov2'; got none"),
        ({"layers": PLACES, "network": "a"}, "Expected no network or input_size for the encoder 'classifier'"),
    ],
)
def test_configs_that_name_no_encoder_or_no_place_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AlignConfig(**config)
