import numpy as np
import pytest
import torch
from PIL import Image

from biflow.data.decode import read_image
from biflow.data.formats import fault_of
from biflow.data.images import enlarge, make_grid, write_images
from biflow.data.npz import read_samples
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
    assert found.rejected["broken.jpg"] == fault_of(b"no image")
    assert "400x8 pixels" in found.rejected["strip.png"]


def test_sample_files_of_another_shape_are_refused(tmp_path):
    write_images(tmp_path / "x.npz", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(InputError, match=r"\(N, 4, 4, 1\).*got \(2, 8, 8, 1\)"):
        read_pictures(tmp_path / "x.npz", 4, 1)
    np.savez(tmp_path / "y.npz", other=np.zeros(3))
    (tmp_path / "z.npz").write_bytes(b"")
    for name in ("y.npz", "z.npz"):
        with pytest.raises(InputError, match="Expected arr"):
            read_pictures(tmp_path / name, 4, 1)
    with pytest.raises(InputError, match="File name too long"):
        read_pictures(tmp_path / ("x" * 300), 4, 1)
    with pytest.raises(InputError, match="4 channels"):
        read_pictures(tmp_path, 4, 4)


def test_files_of_one_name_are_told_apart(tmp_path):
    for i, folder in enumerate("abc"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 10 * i).save(tmp_path / folder / "x.png")
    found = read_pictures([tmp_path / folder / "x.png" for folder in "abc"], 8, 1)
    assert found.names == ["x.png", "x.png (1)", "x.png (2)"]
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 10, 20]


def test_pictures_of_more_pixels_than_asked_are_skipped(tmp_path):
    for side in (8, 16):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    found = read_pictures(tmp_path, 8, 1, max_pixels=64)
    assert found.names == ["8.png"]
    assert "megapixels" in found.rejected["16.png"]


def test_only_images_that_show_the_background_are_said_to_be_composited(tmp_path):
    for name, alpha in {"opaque": 255, "glass": 254}.items():
        Image.new("RGBA", (8, 8), (9, 9, 9, alpha)).save(tmp_path / f"{name}.png")
    assert read_pictures(tmp_path, 8, 3).notes() == ["glass.png was composited on white."]


def test_names_of_files_are_printable(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a\x1b[31m.png")
    (tmp_path / "b\x1b[32m.png").touch()
    notes = read_pictures(tmp_path, 8, 1).notes()
    assert notes == [r"Skipped b\x1b[32m.png (an empty file).", r"a\x1b[31m.png was resized to 8x8."]


def test_a_folder_of_images_keeps_their_order(tmp_path):
    pixels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 8, 8)
    write_images(tmp_path / "out", pixels, torch.arange(12))
    found = read_pictures(tmp_path / "out", 8, 1)
    assert torch.equal(found.pixels, pixels)
    assert found.names[2] == "02_class2.png"


def test_a_grid_has_gaps_between_its_images_only():
    grid = make_grid(torch.full((4, 1, 2, 2), 9, dtype=torch.uint8))[0]
    line = [9, 9, 0, 9, 9]
    assert grid.tolist() == [line, line, [0] * 5, line, line]


def test_narrow_images_are_enlarged_to_the_width_at_least():
    image = torch.arange(3, dtype=torch.uint8).view(1, 1, 3)
    assert enlarge(image, 4)[0].tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert torch.equal(enlarge(image, 3), image)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 4), np.uint8)}, r"got \(2, 8, 8, 4\) uint8"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "got float32. Scale and round"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"got \(0, 8, 8, 3\)"),
        (
            {"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(3, int)},
            r"Expected 2 integer labels.*got \(3,\)",
        ),
    ],
)
def test_sample_files_of_other_contents_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_samples(tmp_path / "x.npz")
