import numpy as np
import pytest
import torch
from PIL import Image

from biflow.data.mask import fit_mask, read_mask, to_mask
from biflow.data.pictures import Picture
from biflow.errors import InputError

WHERE = np.zeros((4, 6), bool)
WHERE[1:3, :2] = True
PIXELS = torch.zeros(2, 1, 4, 6, dtype=torch.uint8)


def palette(values, *, transparency=None):
    image = Image.fromarray(values.astype(np.uint8)).copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255] * 3 + [0] * 3 + [255] * 3)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def with_alpha(grey, alpha):
    return Image.merge("LA", [Image.fromarray(np.uint8(band)) for band in (grey, alpha)])


MASKS = {
    "grey": Image.fromarray(np.uint8(WHERE * 255)),
    "bits": Image.fromarray(np.uint8(WHERE * 255)).convert("1"),
    "grey of 0 and 1": Image.fromarray(np.uint8(WHERE)),
    "colour of 0 and 1": Image.fromarray(np.uint8(WHERE)[..., None].repeat(3, -1)),
    "integers of 0 and 1": Image.fromarray(WHERE.astype(np.int32)),
    "16 bits of 0 and 1": Image.fromarray(WHERE.astype(np.uint16)),
    "floats from 0 to 1": Image.fromarray(np.where(WHERE, 0.6, 0.4).astype(np.float32)),
    "integers of 0 and 255": Image.fromarray(WHERE.astype(np.int32) * 255),
    "16 bits": Image.fromarray(WHERE.astype(np.uint16) * 65535),
    "transparent white": with_alpha(WHERE * 0 + 255, WHERE * 255),
    "colour with alpha": with_alpha(WHERE * 0 + 255, WHERE * 255).convert("RGBA"),
    "palette": palette(1 - WHERE),
    "palette with a transparent white": palette(2 - 2 * WHERE, transparency=2),
}


@pytest.mark.parametrize("image", MASKS.values(), ids=MASKS.keys())
def test_a_mask_is_the_same_in_python_and_on_the_command_line(tmp_path, image):
    before = image.tobytes()
    assert torch.equal(to_mask(image, PIXELS), torch.from_numpy(WHERE).expand(2, 1, 4, 6))
    assert image.tobytes() == before
    image.save(tmp_path / "mask.tif" if image.mode in ("F", "I") else tmp_path / "mask.png")
    read = read_mask(str(next(tmp_path.iterdir())))
    assert ((np.asarray(read) >= 128) == WHERE).all()


@pytest.mark.parametrize("brightest", [2, 38, 127])
def test_a_mask_that_is_dark_all_over_is_refused_for_that(tmp_path, brightest):
    image = Image.fromarray(np.uint8(WHERE * brightest))
    image.save(tmp_path / "mask.png")
    for call in (lambda: to_mask(image, PIXELS), lambda: read_mask(str(tmp_path / "mask.png"))):
        with pytest.raises(InputError, match=f"values of 128 or more; its brightest value is {brightest} of 255"):
            call()


def test_values_of_128_and_more_are_white():
    values = np.uint8([[127, 128, 200, 0, 0, 0]] * 4)
    assert to_mask(Image.fromarray(values), PIXELS)[0, 0, 0].tolist() == [False, True, True, False, False, False]


def test_a_box_covers_its_pixels_and_no_others():
    picture = Picture("x.png", torch.zeros(1, 6, 6), (6, 6))
    assert fit_mask((1, 2, 4, 6), [picture])[0].nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(1, 4)]
    for box in ((0, 0, 7, 6), (0, 0, 6, 7)):
        with pytest.raises(InputError, match=r"Expected a box within x\.png, 6x6 pixels"):
            fit_mask(box, [picture])


@pytest.mark.parametrize("box", ["2,0,2,4", "0,3,4,3", "3,0,2,4", "0,4,4,1"])
def test_a_box_needs_an_area(box):
    with pytest.raises(InputError, match="a box with an area"):
        read_mask(box)


def test_a_mask_that_touches_half_a_pixel_or_more_masks_it():
    whole = np.zeros((8, 8), np.uint8)
    whole[:, :3] = 255  # three quarters of the first two pixels: all of the first, half of the second
    whole[:, 3:4] = 40
    whole[:, 4:5] = 200  # less than half of the third
    fitted = fit_mask(Image.fromarray(whole), [Picture("x.png", torch.zeros(1, 4, 4), (8, 8))])[0]
    assert fitted.tolist() == [[True, True, False, False]] * 4
