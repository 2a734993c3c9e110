"""Image files of every kind that a folder may hold, and broken ones."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = [
    ("1", "png", {}),
    ("L", "png", {}),
    ("LA", "png", {}),
    ("P", "png", {"transparency": 0}),
    ("RGB", "png", {}),
    ("RGBA", "png", {}),
    ("L", "jpg", {}),
    ("RGB", "jpeg", {}),
    ("CMYK", "jpg", {}),
    ("RGB", "webp", {}),
    ("RGBA", "webp", {}),
    ("RGB", "bmp", {}),
    ("P", "bmp", {}),
    ("L", "tif", {}),
    ("CMYK", "tiff", {}),
    ("I;16", "png", {}),
    ("I;16", "tif", {}),
]
BROKEN = ("cut_off.jpg", "text.png", "empty.webp", "strip.png", "bomb.png")


def noise(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


def write_kinds(folder: Path, seed: int = 0) -> list[str]:
    """One small image of every kind, an animation and a turned photograph; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rgba = Image.fromarray(noise(12, 10, 4, seed=seed))
    rgb, deep = rgba.convert("RGB"), Image.fromarray(noise(12, 10, seed=seed).astype(np.uint16) * 257)
    for mode, suffix, options in KINDS:
        image = deep if mode == "I;16" else rgba if mode == "RGBA" else rgb.convert(mode)
        image.save(folder / f"{mode.replace(';', '_')}.{suffix}", **options)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "animation.webp", save_all=True, append_images=[Image.new("RGB", rgb.size)])
    return sorted(path.name for path in folder.iterdir())


def write_broken(folder: Path) -> None:
    """One file of every kind that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(64, 64, 3)).save(folder / "cut_off.jpg")
    whole = (folder / "cut_off.jpg").read_bytes()
    (folder / "cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.webp").write_bytes(b"")
    Image.fromarray(noise(1, 100)).save(folder / "strip.png")
    (folder / "bomb.png").write_bytes(bomb(30000, 30000))


def bomb(width: int, height: int) -> bytes:
    """A small PNG of this many black pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze, row = zlib.compressobj(), bytes(1 + width // 8)
    rows = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything about a folder that writing would change."""
    files = {str(path): path.lstat() for path in [folder, *folder.rglob("*")]}
    return {name: (status.st_size, status.st_mtime_ns, status.st_ino) for name, status in files.items()}


def write_tiff(path: Path, values: np.ndarray, *, bits: int = 0, white_is_zero: bool = False) -> None:
    """A grey TIFF of one strip; 12 bits are packed, two values in three bytes."""
    data, kind = values.tobytes(), {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    if bits == 12:
        first, second = values.reshape(-1, 2).astype(int).T
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits or 8 * values.itemsize, 259: 1, 262: 1 - white_is_zero, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    padded = data + bytes(len(data) % 2)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory)
