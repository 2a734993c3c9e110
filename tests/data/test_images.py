import numpy as np
import pytest
import torch
from PIL import Image

from biflow.data.decode import read_image
from biflow.data.images import write_images
from biflow.data.pictures import read_pictures
from biflow.errors import InputError


def picture(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


@pytest.mark.parametrize("suffix", [".npz", ".png"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    pixels = torch.from_numpy(picture(8, 8, 3)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    path = tmp_path / "x.npz" if suffix == ".npz" else tmp_path / "folder"
    write_images(path, pixels, torch.tensor([0, 1]))
    found = read_pictures(path, 8, 3)
    assert torch.equal(found.pixels, pixels)
    assert len(found.names) == 2
    assert not found.rejected


def test_larger_images_are_resized_and_centre_cropped(tmp_path):
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 4, 1) == 200).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (31, 17), (100, 33)])
def test_every_size_is_brought_to_the_models(tmp_path, size):
    Image.fromarray(picture(*size, 3)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 8, 3).shape == (3, 8, 8)
    assert read_image(tmp_path / "x.png", 8, 1).shape == (1, 8, 8)


def test_every_mode_becomes_grey_or_colour(tmp_path):
    rgb = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    for mode, suffix in [("L", "png"), ("P", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("RGB", "webp"), ("RGB", "bmp")]:
        path = tmp_path / f"{mode}.{suffix}"
        rgb.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
        assert (read_image(path, 8, 3).int() - 90).abs().max() <= 3, (mode, suffix)


def test_transparent_parts_become_white(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", 8, 3)
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == 255).all()


def test_exif_rotation_is_followed(tmp_path):
    image = Image.fromarray(np.vstack([np.zeros((4, 8)), np.full((4, 8), 255)]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", 8, 1)[0, 0].float().mean() > 250


def test_unreadable_files_are_listed_with_their_reason(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / "good.png")
    Image.fromarray(np.zeros((8, 400), np.uint8)).save(tmp_path / "strip.png")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_pictures(tmp_path, 8, 1)
    assert found.names == ["good.png"]
    assert found.rejected.keys() == {"broken.jpg", "strip.png"}
    assert found.rejected["broken.jpg"] == "not a PNG, JPEG, WebP, BMP or TIFF image"
    assert "400x8 pixels" in found.rejected["strip.png"]


def test_sample_files_of_another_shape_are_refused(tmp_path):
    write_images(tmp_path / "x.npz", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2))
    with pytest.raises(InputError, match=r"\(N, 4, 4, 1\).*got \(2, 8, 8, 1\)"):
        read_pictures(tmp_path / "x.npz", 4, 1)
    np.savez(tmp_path / "y.npz", other=np.zeros(3))
    (tmp_path / "z.npz").write_bytes(b"")
    for name in ("y.npz", "z.npz"):
        with pytest.raises(InputError, match="arr_0"):
            read_pictures(tmp_path / name, 4, 1)
    with pytest.raises(InputError, match="File name too long"):
        read_pictures(tmp_path / ("x" * 300), 4, 1)
    with pytest.raises(InputError, match="4 channels"):
        read_pictures(tmp_path, 4, 4)
