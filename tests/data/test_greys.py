import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from biflow.data.decode import decode, inspect
from biflow.data.greys import Grey, doubts
from biflow.data.pictures import read_pictures
from biflow.errors import InputError
from tests.data.pictures import write_tiff

RAMP = np.tile(np.arange(256), (16, 1))


def deep_png(largest):
    """A PNG with a ramp in 16 bits per colour, which Pillow does not write."""
    rows = (RAMP * largest // 255).astype(">u2").repeat(3, axis=1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = {b"IHDR": struct.pack(">IIBBBBB", 256, 16, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(pixels), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )


def decoded(path):
    return np.asarray(decode(path).image).astype(int)


WHITE_IS_ZERO = [(255, np.uint8, 8, True), (65535, np.uint16, 16, True), (65535, np.float32, 32, True)]


@pytest.mark.parametrize(
    ("white", "kind", "bits", "white_is_zero"),
    [
        *WHITE_IS_ZERO,  # Pillow opens no others
        (255, np.uint8, 8, False),
        (255, np.int16, 16, False),
        (255, np.int32, 32, False),
        (255, np.float32, 32, False),
        (4095, np.uint16, 12, False),
        (65535, np.uint16, 16, False),
        (65535, np.int32, 32, False),
        (65535, np.float32, 32, False),
    ],
)
def test_a_grey_ramp_is_the_same_in_every_type_that_tells_its_range(tmp_path, white, kind, bits, white_is_zero):
    values = np.rint(RAMP * (white / 255)).astype(kind)
    write_tiff(tmp_path / "x.tif", white - values if white_is_zero else values, bits=bits, white_is_zero=white_is_zero)
    assert abs(decoded(tmp_path / "x.tif") - RAMP).max() <= 1


def test_the_values_of_a_ramp_in_strips_are_those_of_the_whole(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (1500, 1000)).astype(np.uint16)  # more than one strip
    Image.fromarray(values).save(tmp_path / "x.png", compress_level=1)
    assert (decoded(tmp_path / "x.png") == np.rint(values / 257)).all()


@pytest.mark.parametrize("largest", [255, 1023])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_that_hold_eight_or_ten_are_refused(tmp_path, suffix, largest):
    Image.fromarray((RAMP * largest // 255).astype(np.uint16)).save(tmp_path / f"x.{suffix}")
    with pytest.raises(InputError, match=f"16-bit grey values of at most {largest} of 65535.*save them with 8 bits"):
        decode(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        (np.float32, 1),
        (np.float32, 2),
        (np.float32, 300),
        (np.int32, 1),
        (np.int32, 4095),
        (np.int16, 4000),
        (np.int16, 30000),
    ],
)
def test_a_range_that_neither_type_nor_values_tell_is_refused(tmp_path, kind, largest):
    write_tiff(tmp_path / "x.tif", (RAMP * (largest / 255)).astype(kind))
    with pytest.raises(InputError, match=f"grey values up to {largest}, neither the range 0-255 nor 0-65535"):
        decode(tmp_path / "x.tif")


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-100, 200), (0, 70000), (0, np.nan)])
def test_values_outside_16_bits_are_refused(tmp_path, low, high):
    write_tiff(tmp_path / "x.tif", np.float32([[low, high]] * 2))
    with pytest.raises(InputError, match=r"grey values from .*, outside 0-65535; save them with 8"):
        decode(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_black_is_black_in_every_type(tmp_path, kind):
    write_tiff(tmp_path / "x.tif", np.zeros((4, 4), kind))
    assert not decoded(tmp_path / "x.tif").any()


def test_sixteen_bits_of_colour_that_hold_fewer_are_refused_as_well(tmp_path):
    (tmp_path / "x.png").write_bytes(deep_png(1023))
    with pytest.raises(InputError, match="16-bit colour values of at most 1023"):
        decode(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(deep_png(4095))
    assert inspect(tmp_path / "x.png").largest == 4095
    (tmp_path / "x.png").write_bytes(deep_png(65535))
    assert (decoded(tmp_path / "x.png") == RAMP[..., None]).all()


def test_twelve_bits_in_sixteen_are_told_of_a_folder_and_of_a_picture(tmp_path):
    for name, largest in {"a": 4095, "b": 3000, "c": 65535}.items():
        Image.fromarray((RAMP * largest // 255).astype(np.uint16)).save(tmp_path / f"{name}.png")
    greys = [decode(tmp_path / f"{name}.png").grey for name in "abc"]
    assert [grey.largest for grey in greys] == [4095, 3000, 65535]
    (warning,) = doubts(greys[:2])
    assert "above 4095 of 65535: all are nearly black. If they have 12 bits, save them with 8" in warning
    assert not doubts(greys)
    assert not doubts([decode(tmp_path / "c.png").grey])
    notes = read_pictures([tmp_path / "a.png", tmp_path / "c.png"], 16, 1).notes()
    assert [note for note in notes if note.startswith("a.png was read as 16-bit grey, nearly black; save")]
    assert not [note for note in notes if note.startswith("c.png was read")]


def test_a_folder_read_with_two_whites_is_told():
    (warning,) = doubts([Grey(255, 200), Grey(65535, 60000), Grey()])
    assert "read as 0 to 255, others as 0 to 65535" in warning
    assert not doubts([Grey(65535, 60000), Grey()])
