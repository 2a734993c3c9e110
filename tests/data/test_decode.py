import os

import numpy as np
import pytest
from PIL import Image

from biflow.data.decode import CROPS, at_size, decode, inspect, read_image, reason_of
from biflow.data.formats import HEAD_BYTES, IMAGE_SUFFIXES, SUPPORTED, fault_of
from biflow.data.listing import list_folder
from biflow.errors import InputError
from tests.data.pictures import bomb, noise, write_kinds


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path, suffix):
    grey = noise(8, 8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    assert (read_image(path, 8, 1)[0].numpy() == grey).all()
    assert (read_image(path, 8, 3).numpy() == grey).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_sixteen_bits_are_rounded_to_the_nearest_of_eight(tmp_path, kind):
    values = np.tile(np.array([0, 128, 129, 385, 386, 65535]), (6, 1)).astype(kind)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif", 6, 1)[0, 0].tolist() == [0, 0, 1, 1, 2, 255]


def test_big_endian_sixteen_bits_are_read(tmp_path):
    grey = noise(8, 8)
    Image.fromarray((grey.astype(np.uint16) * 257).astype(">u2")).save(tmp_path / "x.tif")
    assert (read_image(tmp_path / "x.tif", 8, 1)[0].numpy() == grey).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [(-1, "16 bits"), (70000, "16 bits"), (float("nan"), "16 bits"), (0.5, "floating-point")],
)
def test_grey_values_of_unknown_range_are_refused(tmp_path, values, reason):
    Image.fromarray(np.full((4, 4), values, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=reason):
        decode(tmp_path / "x.tif")


def test_a_transparent_value_of_sixteen_bits_becomes_background(tmp_path):
    values = np.full((4, 4), 25700, np.uint16)
    values[:2] = 257
    Image.fromarray(values).save(tmp_path / "x.png", transparency=257)
    found = read_image(tmp_path / "x.png", 4, 1)[0]
    assert (found[:2] == 255).all()
    assert (found[2:] == 100).all()


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0), ("grey", 128)])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_parts_take_the_colour_of_the_background(tmp_path, mode, background, value):
    image = Image.new("RGBA", (8, 8), (60, 60, 60, 255))
    image.paste((10, 10, 10, 0), (0, 0, 8, 4))
    if mode == "P":
        image = Image.fromarray(np.repeat(np.uint8([[0], [1]]), 4, axis=0).repeat(8, axis=1), mode="P")
        image.putpalette([10, 10, 10, 60, 60, 60])
        image.save(tmp_path / "x.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", 8, 3, background=background)
    assert (found[:, :4] == value).all()
    assert (found[:, 4:] == 60).all()


def test_half_transparent_parts_are_blended_with_the_background(tmp_path):
    Image.new("RGBA", (4, 4), (0, 100, 200, 128)).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", 4, 3)[:, 0, 0].tolist()
    assert found == pytest.approx([127, 177, 227], abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_every_exif_orientation_is_applied(tmp_path, suffix, orientation):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255  # the bright quarter is at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(upright)
    for back in {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, []):
        turned = turned.transpose(Image.Transpose(back))
    options = {"lossless": True} if suffix == "webp" else {}
    turned.convert("RGB").save(tmp_path / f"x.{suffix}", exif=exif, **options)
    found = np.asarray(decode(tmp_path / f"x.{suffix}").image.convert("L"))
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).max() < 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's warning
def test_an_image_with_damaged_exif_is_read(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "x.jpg", 8, 1).shape == (1, 8, 8)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("webp", "tif", "png", "gif"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / f"x.{suffix}", 8, 3)[0].float().mean() > 240, suffix


def test_every_kind_is_read_in_grey_and_in_colour(tmp_path):
    for name in write_kinds(tmp_path):
        for channels in (1, 3):
            assert read_image(tmp_path / name, 8, channels).shape == (channels, 8, 8), name


def test_the_crop_of_tarflow_is_one_bilinear_resize_and_torchvisions_centre_crop():
    image = Image.fromarray(noise(33, 50))
    found = at_size(image, 8, 1, crop="tarflow")[0].numpy()
    resized = np.asarray(image.resize((12, 8), Image.Resampling.BILINEAR))  # 8 * 50 / 33 = 12.1
    assert (found == resized[:, 2:10]).all()
    assert not (found == at_size(image, 8, 1, crop="adm")[0].numpy()).all()


@pytest.mark.parametrize("crop", CROPS)
def test_an_image_of_the_models_size_is_unchanged(crop):
    grey = noise(8, 8)
    assert (at_size(Image.fromarray(grey), 8, 1, crop=crop)[0].numpy() == grey).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10000, 30000])  # Pillow warns about the first and refuses the second
def test_decompression_bombs_are_refused(tmp_path, side):
    (tmp_path / "x.png").write_bytes(bomb(side, side))
    assert (tmp_path / "x.png").stat().st_size < 200_000
    with pytest.raises(Exception, match=r"pixels|bomb") as fault:
        decode(tmp_path / "x.png")
    assert reason_of(fault.value) == "more than 89 megapixels, which may be a decompression bomb"


def test_a_bomb_warning_raised_as_an_error_gives_the_same_reason(tmp_path):
    (tmp_path / "x.png").write_bytes(bomb(10000, 10000))
    with pytest.raises(Image.DecompressionBombWarning) as fault:
        decode(tmp_path / "x.png")
    assert reason_of(fault.value).startswith("more than 89 megapixels")


def test_other_formats_are_not_opened_whatever_their_suffix(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.ppm")
    (tmp_path / "x.ppm").rename(tmp_path / "x.png")
    with pytest.raises(InputError, match="not a PNG, JPEG, WebP, GIF, BMP, TIFF"):
        decode(tmp_path / "x.png")


def test_a_damaged_image_is_distinguished_from_other_files(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG and nothing that follows from it")
    with pytest.raises(InputError, match="a PNG image, damaged or of a rare kind"):
        decode(tmp_path / "x.png")


def test_heic_without_its_decoder_names_the_package(tmp_path):
    if "HEIF" in SUPPORTED:
        pytest.skip("pillow-heif is installed")
    (tmp_path / "x.png").write_bytes(b"\0\0\0\x1cftypheic")
    with pytest.raises(InputError, match="a HEIC image, which Pillow cannot read here; install pillow-heif"):
        decode(tmp_path / "x.png")


def test_a_file_of_any_supported_ending_is_listed_and_read(tmp_path):
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    for suffix in IMAGE_SUFFIXES:
        image.save(tmp_path / f"x{suffix}", format=next(n for n, each in SUPPORTED.items() if suffix in each.suffixes))
        assert (read_image(tmp_path / f"x{suffix}", 8, 3).int() - 90).abs().max() <= 3, suffix
        assert fault_of((tmp_path / f"x{suffix}").read_bytes()[:HEAD_BYTES]).startswith("a "), suffix
    assert len(list_folder(tmp_path).images) == len(IMAGE_SUFFIXES)
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= IMAGE_SUFFIXES


def test_transparent_parts_of_a_gif_take_the_background(tmp_path):
    image = Image.frombytes("P", (8, 8), bytes(32) + bytes([1]) * 32)
    image.putpalette([10, 10, 10, 60, 60, 60])
    image.save(tmp_path / "x.gif", transparency=0)
    found = read_image(tmp_path / "x.gif", 8, 3, background="black")
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == 60).all()


def test_what_is_inspected_is_what_is_decoded(tmp_path):
    for name in write_kinds(tmp_path):
        found, whole = inspect(tmp_path / name), decode(tmp_path / name)
        assert found == (*whole.image.size, whole.mode, whole.format, *whole.grey), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_inspected_at_an_eighth_has_its_own_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 97)).save(tmp_path / "x.jpg", exif=exif)
    assert inspect(tmp_path / "x.jpg")[:2] == decode(tmp_path / "x.jpg").image.size


def test_a_cut_off_photograph_is_refused_when_inspected(tmp_path):
    for progressive in (False, True):
        Image.fromarray(noise(64, 64, 3)).save(tmp_path / "x.jpg", progressive=progressive)
        data = (tmp_path / "x.jpg").read_bytes()
        (tmp_path / "x.jpg").write_bytes(data[: len(data) * 9 // 10])
        for read in (inspect, decode):
            with pytest.raises(OSError, match="truncated"):
                read(tmp_path / "x.jpg")


@pytest.mark.parametrize("shape", [(8, 11), (11, 8), (9, 8), (37, 50), (50, 37), (16, 17)])
def test_the_crop_of_adm_is_that_of_its_code(shape):
    grey = noise(*shape)
    image = Image.fromarray(grey)
    while min(*image.size) >= 2 * 8:  # center_crop_arr of guided-diffusion, image_datasets.py
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = 8 / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - 8) // 2, (array.shape[1] - 8) // 2
    assert (at_size(Image.fromarray(grey), 8, 1, crop="adm")[0].numpy() == array[top : top + 8, left : left + 8]).all()


@pytest.mark.parametrize("shape", [(8, 11), (11, 8), (8, 13), (13, 8)])
def test_an_odd_margin_is_cropped_as_torchvision_does(shape):
    grey = noise(*shape)
    top, left = (round((side - 8) / 2) for side in shape)
    found = at_size(Image.fromarray(grey), 8, 1, crop="tarflow")[0].numpy()
    assert (found == grey[top : top + 8, left : left + 8]).all()


def test_a_strip_at_the_limit_is_read_and_a_longer_one_is_not(tmp_path):
    for side in (32, 33):
        Image.new("L", (side, 1)).save(tmp_path / f"{side}.png")
    assert decode(tmp_path / "32.png").image.size == (32, 1)
    with pytest.raises(InputError, match="33x1 pixels, one side more than 32 times"):
        decode(tmp_path / "33.png")


def test_an_image_of_more_pixels_than_asked_is_refused(tmp_path):
    Image.new("L", (20, 10)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", max_pixels=200).image.size == (20, 10)
    with pytest.raises(InputError, match="megapixels"):
        decode(tmp_path / "x.png", max_pixels=199)


def test_what_is_no_regular_file_has_its_own_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    for name, reason in {"pipe": "not a file", "folder": "not a file", "empty": "an empty file"}.items():
        with pytest.raises(InputError, match=reason):
            decode(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError) as fault:
        decode(tmp_path / "none.png")
    assert reason_of(fault.value) == "No such file or directory"
