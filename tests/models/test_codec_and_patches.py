import torch
import torch.nn.functional as F

from biflow.models.codec import PixelCodec
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


def test_patches_are_in_raster_order_channel_row_column():
    images = torch.randn(2, 3, 8, 8)
    expected = F.unfold(images, kernel_size=2, stride=2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 2), expected)


def test_unpatchify_undoes_patchify():
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4, 3), images)
