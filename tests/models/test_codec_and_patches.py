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
