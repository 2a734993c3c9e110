"""The image formats that are read: their names, the endings of their files, and how their files begin."""

import re
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from PIL import features

HEAD_BYTES = 12  # enough for every signature


class Format(NamedTuple):
    """An image format."""

    title: str
    suffixes: tuple[str, ...]
    signature: bytes  # a regular expression for the first bytes


KNOWN = {  # by Pillow's names
    "PNG": Format("PNG", (".png",), rb"\x89PNG"),
    "JPEG": Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    "WEBP": Format("WebP", (".webp",), rb"RIFF....WEBP"),
    "GIF": Format("GIF", (".gif",), rb"GIF8"),
    "BMP": Format("BMP", (".bmp",), rb"BM"),
    "TIFF": Format("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    "AVIF": Format("AVIF", (".avif",), rb"....ftypavi"),
    "HEIF": Format("HEIC", (".heic", ".heif"), rb"....ftyp(hei|hev|mif1)"),
}


def is_supported(name: str) -> bool:
    """Whether this installation of Pillow decodes a format; of HEIC, with the package pillow-heif."""
    if name == "HEIF":
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()
            return True
        return False
    decoder = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}.get(name)
    return decoder is None or decoder in features.get_supported()


SUPPORTED = {name: each for name, each in KNOWN.items() if is_supported(name)}
"""The formats that are read, by Pillow's names; no other decoder of Pillow is tried, whatever the file."""
IMAGE_SUFFIXES = {suffix for each in SUPPORTED.values() for suffix in each.suffixes}


def fault_of(head: bytes) -> str:
    """Why a file that begins so could not be opened.

    >>> fault_of(b"GIF89a"), fault_of(b"%PDF")[:9]
    ('a GIF image, damaged or of a rare kind', 'not a PNG')
    """
    for name, each in KNOWN.items():
        if re.match(each.signature, head, re.DOTALL):
            if name in SUPPORTED:
                return f"a {each.title} image, damaged or of a rare kind"
            return f"a {each.title} image, which Pillow cannot read here" + "; install pillow-heif" * (name == "HEIF")
    *titles, last = (each.title for each in SUPPORTED.values())
    return f"not a {', '.join(titles)} or {last} image"
