"""Data sets in .npz and IDX files, written here in the layouts of their publishers."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.config import ReadingConfig
from biflow.data.decode import at_size
from biflow.data.npz import read_samples, write_npz
from biflow.data.open import canonical_name, open_data
from biflow.errors import InputError

SHAPE = (1, 4, 4)
DEFAULT = ReadingConfig()


def grey(count: int, start: int = 0) -> np.ndarray:
    """Different images (N, 4, 4)."""
    return (np.arange(count * 16).reshape(count, 4, 4) + start).astype(np.uint8)


def idx(path: Path, values: np.ndarray, kind: int = 8) -> None:
    """Write an IDX file, gzipped by its ending."""
    content = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(folder: Path, labels: tuple[int, ...] = (0, 1, 2), *, test: str = "t10k", ending: str = ".gz") -> Path:
    """A folder like MNIST's."""
    folder.mkdir(exist_ok=True)
    for split, count, start in (("train", 6, 0), (test, 3, 100)):
        idx(folder / f"{split}-images-idx3-ubyte{ending}", grey(count, start))
        idx(folder / f"{split}-labels-idx1-ubyte{ending}", np.array(labels * (count // 3), np.uint8))
    return folder


def test_an_adm_file_is_read_with_its_labels_and_class_names(tmp_path):
    pixels = torch.from_numpy(grey(4))[:, None]
    write_npz(tmp_path / "x.npz", pixels, torch.tensor([1, 0, 1, 1]), ("ant", "bee"))
    split = open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT)
    assert torch.equal(split.train.read(torch.arange(4)), pixels)
    assert split.train.labels.tolist() == [1, 0, 1, 1]
    assert split.train.class_names == ("ant", "bee")
    assert len(split.test) == 0


@pytest.mark.parametrize(
    ("names", "tests"),
    [
        (("arr_0", "arr_1"), ()),
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("train_images", "train_labels"), ("test_images", "test_labels")),
    ],
)
def test_usual_names_of_arrays_are_known(tmp_path, names, tests):
    labels = np.array([[0], [1], [1]])  # a column, as in MedMNIST
    arrays = dict(zip(names + tests, (grey(3), labels, grey(2, 50), labels[:2]), strict=False))
    np.savez(tmp_path / "x.npz", **arrays)
    split = open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT)
    assert split.train.labels.tolist() == [0, 1, 1]
    assert split.train.class_names == ("0", "1")
    assert split.test.read(torch.arange(len(split.test))).shape[0] == (2 if tests else 0)


def test_a_folder_holds_a_training_and_a_test_file(tmp_path):
    write_npz(tmp_path / "train.npz", torch.from_numpy(grey(4))[:, None], torch.tensor([0, 1, 0, 1]), ("ant", "bee"))
    np.savez(tmp_path / "test.npz", grey(2, 90), np.array([1, 0]))  # without names: those of train.npz
    split = open_data(f"npz:{tmp_path}", SHAPE, DEFAULT)
    assert split.test.labels.tolist() == [1, 0]
    assert split.test.class_names == ("ant", "bee")
    assert split.test.read(torch.tensor([0]))[0, 0, 0, 0] == 90


def test_classes_of_the_test_set_are_matched_by_name(tmp_path):
    write_npz(tmp_path / "train.npz", torch.from_numpy(grey(2))[:, None], torch.tensor([0, 1]), ("ant", "bee"))
    write_npz(tmp_path / "test.npz", torch.from_numpy(grey(2))[:, None], torch.tensor([0, 1]), ("bee", "ant"))
    assert open_data(f"npz:{tmp_path}", SHAPE, DEFAULT).test.labels.tolist() == [1, 0]


def test_images_without_labels_have_no_classes(tmp_path):
    np.savez(tmp_path / "x.npz", grey(3))
    train = open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT).train
    assert train.class_names == ()
    assert train.labels.tolist() == [0, 0, 0]


def test_other_sizes_and_colours_are_converted_as_image_files_are(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (2, 12, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", colour)
    train = open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT).train
    wanted = torch.stack([at_size(Image.fromarray(image), 4, 1) for image in colour])
    assert torch.equal(train.read(torch.arange(2)), wanted)


def test_a_share_is_held_out_with_all_copies_of_an_image(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", np.concatenate([images, images]), np.arange(100) % 2)
    split = open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, ReadingConfig(test_share=0.3))
    test = {image.numpy().tobytes() for image in split.test.images}
    assert len(split.test) == 2 * len(test)
    assert 5 <= len(test) <= 25
    assert not test & {image.numpy().tobytes() for image in split.train.images}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_idx_files_are_read_as_they_are_published(tmp_path, test, ending):
    split = open_data(f"idx:{mnist(tmp_path / 'set', test=test, ending=ending)}", SHAPE, DEFAULT)
    assert torch.equal(split.train.read(torch.arange(6)), torch.from_numpy(grey(6))[:, None])
    assert torch.equal(split.test.read(torch.arange(3)), torch.from_numpy(grey(3, 100))[:, None])
    assert split.test.labels.tolist() == [0, 1, 2]
    assert split.train.class_names == ("0", "1", "2")


def test_labels_that_start_at_one_name_their_classes(tmp_path, capsys):
    split = open_data(f"idx:{mnist(tmp_path / 'letters', (1, 2, 4))}", SHAPE, DEFAULT)
    assert split.train.class_names == split.test.class_names == ("1", "2", "4")
    assert split.test.labels.tolist() == [0, 1, 2]
    assert "are named by their labels, 1 to 4" in capsys.readouterr().err


def test_a_path_has_one_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert canonical_name("npz:x.npz") == f"npz:{tmp_path.resolve() / 'x.npz'}"
    assert canonical_name("idx:./set/") == f"idx:{tmp_path.resolve() / 'set'}"


BAD_ARRAYS = {
    "no images": ({"mu": np.zeros(3)}, "Expected images in .*arr_0, x_train, train_images; found none"),
    "floats": ({"arr_0": grey(2) / 255}, "Expected uint8 images, 0 to 255, in arr_0 .*got float64. Scale and round"),
    "channels first": ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"Expected uint8 images \(N, H, W, 3\)"),
    "empty": ({"arr_0": grey(0)}, r"got \(0, 4, 4, 1\)|got \(0, 4, 4\)"),
    "too few labels": ({"arr_0": grey(3), "arr_1": np.arange(2)}, r"Expected 3 integer labels in arr_1 .*got \(2,\)"),
    "one-hot": ({"arr_0": grey(2), "arr_1": np.eye(2)}, r"Expected 2 integer labels .*got \(2, 2\) float64"),
    "negative": ({"arr_0": grey(2), "arr_1": np.array([0, -1])}, "Expected labels from 0 .*got -1"),
    "out of range": (
        {"arr_0": grey(2), "arr_1": np.array([0, 2]), "class_names": np.array(["ant", "bee"])},
        "Expected labels from 0 to 1 .*it names 2 classes; got 2",
    ),
    "same names": (
        {"arr_0": grey(2), "arr_1": np.array([0, 1]), "class_names": np.array(["ant", "ant"])},
        "Expected different class names",
    ),
    "objects": ({"arr_0": np.array([{}, 1], dtype=object)}, "without Python objects; cannot read it"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT)


def test_bad_files_and_folders_are_refused(tmp_path):
    def message(name: str) -> str:
        with pytest.raises(InputError) as caught:
            open_data(name, SHAPE, DEFAULT)
        return str(caught.value)

    (tmp_path / "x.npz").write_bytes(b"PK")
    assert "cannot read it" in message(f"npz:{tmp_path / 'x.npz'}")
    assert "cannot read it" in message(f"npz:{tmp_path / 'none.npz'}")
    assert "Expected train.npz" in message(f"npz:{tmp_path}")
    assert "Expected a folder of IDX files" in message(f"idx:{tmp_path / 'x.npz'}")
    assert "Expected one IDX file of images of train" in message(f"idx:{tmp_path}")
    assert "Expected a model of grey or RGB images" in _message_of_channels(mnist(tmp_path / "ok"))


def _message_of_channels(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_data(f"idx:{folder}", (4, 4, 4), DEFAULT)
    return str(caught.value)


def test_bad_idx_files_are_refused(tmp_path):
    folder = mnist(tmp_path / "set", ending="")
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"

    def message() -> str:
        with pytest.raises(InputError) as caught:
            open_data(f"idx:{folder}", SHAPE, DEFAULT)
        return str(caught.value)

    whole = images.read_bytes()
    images.write_bytes(whole[:-5])
    assert "Expected 96 bytes of values" in message()
    assert "got 91" in message()
    images.write_bytes(whole[:6])
    assert "Expected an IDX file; cannot read" in message()
    images.write_bytes(b"GIF89a" + whole)
    assert "Expected an IDX file" in message()
    idx(images, grey(6), kind=13)
    assert "Expected an IDX file of bytes" in message()
    idx(images, grey(6))
    idx(labels, np.arange(5, dtype=np.uint8))
    assert "Expected 6 integer labels" in message()
    labels.unlink()
    assert "Expected one IDX file of labels of train" in message()
    mnist(folder)
    mnist(folder, ending="")
    assert "found " in message()
    assert "Give a folder with the files of one data set" in message()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: whole[:12] + b"\xff" * 8 + whole[20:]])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    folder = mnist(tmp_path / "set")
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(damage(images.read_bytes()))
    with pytest.raises(InputError, match=r"Expected an IDX file; cannot read .* Download it again"):
        open_data(f"idx:{folder}", SHAPE, DEFAULT)


def test_test_classes_missing_from_training_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=grey(2), y_train=[0, 1], x_test=grey(2), y_test=[1, 2])
    with pytest.raises(InputError, match=r"Expected the classes of the training images .*got 2. Leave these"):
        open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT)
    np.savez(tmp_path / "x.npz", x_train=grey(2), y_train=[0, 1], x_test=grey(2))
    with pytest.raises(InputError, match="Expected labels in the training set and"):
        open_data(f"npz:{tmp_path / 'x.npz'}", SHAPE, DEFAULT)


def test_written_class_names_do_not_disturb_sample_files(tmp_path):
    write_npz(tmp_path / "x.npz", torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 1]), ("ant", "bee"))
    assert read_samples(tmp_path / "x.npz").labels.tolist() == [0, 1]
