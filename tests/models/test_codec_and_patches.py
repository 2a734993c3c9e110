import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from biflow.errors import InputError
from biflow.models.codec import PixelCodec, make_codec
from biflow.models.patches import patchify, unpatchify


def test_every_grey_level_survives_the_codec():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    codec = PixelCodec()
    images = codec.encode(pixels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(codec.decode(images), pixels)


def test_a_bin_is_the_distance_of_two_grey_levels():
    levels = PixelCodec().encode(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)).flatten()
    torch.testing.assert_close(levels.diff(), torch.full((255,), PixelCodec.bin_width))


def test_decoding_rounds_to_the_nearest_level_and_clips():
    codec = PixelCodec()
    images = torch.tensor([-3.0, -1.0 + 0.49 * codec.bin_width, -1.0 + 0.51 * codec.bin_width, 5.0])
    assert codec.decode(images.view(1, 1, 2, 2)).flatten().tolist() == [0, 0, 1, 255]


def test_latents_are_the_means_of_the_encoder_scaled(autoencoder):
    from diffusers import AutoencoderKL

    codec, reference = make_codec(f"vae:{autoencoder}"), AutoencoderKL.from_pretrained(autoencoder).eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    latents = codec.encode(pixels)
    with torch.no_grad():
        mean = reference.encode(pixels / 127.5 - 1).latent_dist.mean
        torch.testing.assert_close(latents, 0.18215 * mean)
        torch.testing.assert_close(codec.to_images(latents), reference.decode(mean).sample)
    assert tuple(latents.shape[1:]) == codec.latent_shape((3, 8, 8)) == (4, 4, 4)
    assert codec.decode(latents).dtype == torch.uint8


def with_config(folder, target, **changes):
    """A copy of an autoencoder with other entries in its config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return make_codec(f"vae:{target}")


STATISTICS = {"latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [2.0, 0.5, 1.5, 0.25]}


@pytest.mark.parametrize(
    ("changes", "shift", "factor"),
    [
        ({"shift_factor": 0.1, "scaling_factor": 0.36}, [0.1] * 4, [0.36] * 4),
        ({**STATISTICS, "scaling_factor": 0.5}, [0.5, -1.0, 0.25, 2.0], [0.25, 1.0, 1 / 3, 2.0]),
        ({**STATISTICS, "scaling_factor": 0.5, "shift_factor": 3.0}, [0.5, -1.0, 0.25, 2.0], [0.25, 1.0, 1 / 3, 2.0]),
    ],
    ids=["shift factor", "statistics", "statistics before the shift factor"],
)
def test_latents_are_standardised_as_in_diffusers(changes, shift, factor, autoencoder, tmp_path):
    codec, plain = with_config(autoencoder, tmp_path / "other", **changes), make_codec(f"vae:{autoencoder}")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    shift, factor = (torch.tensor(each)[:, None, None] for each in (shift, factor))
    mean, log_variance = plain.moments(pixels).chunk(2, dim=1)
    torch.testing.assert_close(codec.encode(pixels), (mean - shift) * factor)
    torch.testing.assert_close(codec.to_images(codec.encode(pixels)), plain.autoencoder.decode(mean).sample)
    noise = torch.randn_like(mean)
    drawn = (mean + (log_variance / 2).exp() * noise - shift) * factor
    torch.testing.assert_close(codec.draw(plain.moments(pixels), noise), drawn)


def test_codecs_that_scale_latents_in_another_way_are_other_codecs(autoencoder, tmp_path):
    more = {**STATISTICS, "latents_std": [1.0, 1.0, 1.0, 2.0]}
    moved = {**STATISTICS, "latents_mean": [0.0] * 4}
    all_changes = [{}, {"scaling_factor": 0.3}, {"shift_factor": 0.1}, STATISTICS, more, moved]
    codecs = [with_config(autoencoder, tmp_path / str(i), **changes) for i, changes in enumerate(all_changes)]
    assert len({codec.identity() for codec in codecs}) == len(codecs)


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_std": [1.0, 1.0]},
        {"latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"latents_std": 1.0},
        {"latents_mean": ["a"] * 4},
        {"latents_mean": [float("nan")] * 4},
        {"latents_mean": None, "scaling_factor": 0},
        {"latents_mean": None, "scaling_factor": "large"},
        {"latents_mean": None, "shift_factor": [1.0]},
    ],
    ids=str,
)
def test_a_scaling_of_latents_that_is_no_number_is_refused(changes, autoencoder, tmp_path):
    with pytest.raises(InputError, match=r"Expected scaling_factor .* lists of 4"):
        with_config(autoencoder, tmp_path / "other", **{**STATISTICS, **changes})


def test_nan_is_decoded_to_black():
    assert PixelCodec().decode(torch.full((1, 1, 1, 1), torch.nan)).item() == 0


def test_gradients_flow_through_the_frozen_decoder(autoencoder):
    codec = make_codec(f"vae:{autoencoder}")
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    codec.to_images(latents).square().mean().backward()
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in codec.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 9)])
def test_images_that_the_autoencoder_cannot_take_are_refused(shape, autoencoder):
    with pytest.raises(InputError, match="Expected images of 3 channels with a side that is a multiple of 2"):
        make_codec(f"vae:{autoencoder}").latent_shape(shape)


def test_patches_are_in_raster_order_channel_row_column():
    images = torch.randn(2, 3, 8, 8)
    expected = F.unfold(images, kernel_size=2, stride=2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 2), expected)


def test_unpatchify_inverts_patchify():
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4, 3), images)
