"""Open a data set by name: digits, folder:PATH, npz:FILE, idx:FOLDER, hf:NAME or latents:PATH."""

from pathlib import Path

from biflow.config import ReadingConfig
from biflow.data.datasets import DATASETS, ImageSource, ImageStream, Source, Split, load_data
from biflow.errors import InputError, nearest
from biflow.files import check_outside

PATHS = {"folder", "npz", "idx", "latents"}  # kinds of data sets that are named by a path
KINDS = ("folder:PATH", "npz:FILE", "idx:FOLDER", "hf:NAME", "latents:PATH")


def open_data(name: str, image_shape: tuple[int, int, int], reading: ReadingConfig) -> Split[Source]:
    """Open a data set by name; images are resized and cropped to image_shape (P, H, W)."""
    kind, _, where = name.partition(":")
    if reading.streaming and kind != "hf":
        raise InputError(f"Expected hf:NAME to stream; got {name!r}. Set reading.streaming=false.")
    if not where and name in DATASETS:
        return load_data(name)
    if kind == "folder" and where:
        from biflow.data.folder import open_folder

        return open_folder(_path(where), image_shape, reading)
    if kind in {"npz", "idx"} and where:
        from biflow.data.arrays import open_arrays

        return open_arrays(kind, _path(where), image_shape, reading)
    if kind == "hf" and where:
        from biflow.data.hub import open_hub_set

        return open_hub_set(where, image_shape, reading)
    if kind == "latents" and where:
        from biflow.data.latents import open_latents

        return open_latents(_path(where), reading)
    raise InputError(f"Unknown data set {name!r}; {nearest(name, [*DATASETS, *KINDS])}")


def open_images(name: str, image_shape: tuple[int, int, int], reading: ReadingConfig) -> Split[ImageSource]:
    """Open a map-style data set of images; raises for latents and streams."""
    if name.startswith("latents:"):
        raise InputError(f"Expected images; {name!r} holds latents. Use the images that they were encoded from.")
    if reading.streaming:
        raise InputError("Expected a data set with random access; got a stream. Set reading.streaming=false.")
    split = open_data(name, image_shape, reading)
    assert not isinstance(split.train, ImageStream)
    assert not isinstance(split.test, ImageStream)
    return Split(split.train, split.test)


def canonical_name(name: str) -> str:
    """The one spelling of a data set's name: of a folder its absolute path, with links resolved.

    >>> canonical_name("folder:/data/./photos/") == canonical_name("folder:/data/x/../photos")
    True
    >>> canonical_name("digits"), canonical_name("hf:user/birds,small")
    ('digits', 'hf:user/birds,small')
    """
    kind, _, where = name.partition(":")
    path = _path(where)
    if where and (kind in PATHS or (kind == "hf" and path.is_dir())):
        return f"{kind}:{path.resolve()}"
    return name


def check_apart(name: str, output: Path) -> None:
    """Raise if an output path is inside the data set's folder."""
    kind, _, where = name.partition(":")
    if kind in PATHS and where:
        check_outside(output, _path(where))


def _path(where: str) -> Path:
    """A path as a shell reads it."""
    try:
        return Path(where).expanduser() if where.startswith("~") else Path(where)
    except RuntimeError:
        raise InputError(f"Expected the folder of a known user; got {where!r}. Give the whole path.") from None
