"""Mutations of files: damaged bytes, other values, types, shapes and names, a pipe or device in a file's place."""

import json
import os
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

ODD: list[Any] = [
    None, True, -1, 0, 2**62, 10**30, 1e308, 0.5, "", "x", "\x1b[2J\n", "9" * 5000, [], [[]], {}, {"a": 1}, [1, 2, 3],
]  # fmt: skip


def mutate(folder: Path, draw: random.Random) -> tuple[str, bool]:
    """Change one file of a folder; returns what was done, and whether a checksum should tell."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    edits = {".json": edit_json, ".yaml": edit_json, ".safetensors": edit_safetensors, ".pth": edit_pth}
    edits |= {".npz": edit_npz, ".png": edit_png}
    if draw.random() < 0.05:
        return replace_by_other(path, draw), True
    if path.suffix in edits and draw.random() < 0.5:
        return f"{path.name}: {edits[path.suffix](path, draw)}", path.suffix != ".npz"  # other samples are no damage
    return f"{path.name}: {damage(path, draw)}", True


def damage(path: Path, draw: random.Random) -> str:
    """Flip bits, cut, overwrite or insert bytes."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    kind = draw.choice(["flip", "flip", "flip", "burst", "cut", "zero", "insert", "empty"])
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "burst":
        data[at : at + 16] = draw.randbytes(len(data[at : at + 16]))
    elif kind == "cut":
        del data[at:]
    elif kind == "zero":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "insert":
        data[at:at] = draw.randbytes(draw.randrange(1, 64))
    else:
        data.clear()
    path.write_bytes(data)
    return f"{kind} at {at}"


def replace_by_other(path: Path, draw: random.Random) -> str:
    """Put a pipe, a device, a folder or nothing in a file's place."""
    path.unlink()
    kind = draw.choice(["pipe", "zero", "folder", "missing"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    return f"{path.name}: {kind}"


def edit_json(path: Path, draw: random.Random) -> str:
    """Replace or remove one value of a JSON or YAML file, or nest it deep."""
    content = yaml.safe_load(path.read_text())
    places = list(places_in(content))
    parent, key = draw.choice(places)
    if draw.random() < 0.2:
        del parent[key]
        done = f"without {key!r}"
    else:
        parent[key] = draw.choice(ODD)
        done = f"{key!r} = {str(parent[key])[:20]!r}"
    text = json.dumps(content)
    if draw.random() < 0.1:
        text, done = "[" * 50_000 + text + "]" * 50_000, "nested"
    path.write_text(text)
    return done


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested lists and mappings."""
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(each, dict | list):
            yield from places_in(each)


def edit_safetensors(path: Path, draw: random.Random) -> str:
    """Change one entry of a safetensors header."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = draw.choice([key for key in header if key != "__metadata__"])
    key = draw.choice(["dtype", "shape", "data_offsets"])
    header[name][key] = draw.choice(
        ["F64", "I32", "BOOL", "F8_E4M3", "C64"] if key == "dtype" else [*ODD, [2**40, 2**40]]
    )
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", draw.choice([len(text), len(text), 2**62])) + text + data[8 + size :])
    return f"{name} {key} = {str(header[name][key])[:20]}"


def edit_pth(path: Path, draw: random.Random) -> str:
    """Replace one tensor of a state dict by something that is no weight, or rename it."""
    state = torch.load(path, weights_only=True)
    name = draw.choice(sorted(state))
    changes: dict[str, Callable[[Tensor], Any]] = {
        "NaN": lambda x: x * torch.nan, "int": lambda x: x.int(), "bool": lambda x: x > 0,
        "complex": lambda x: x.to(torch.complex64), "meta": lambda x: x.to("meta"), "sparse": lambda x: x.to_sparse(),
        "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), "text": lambda _: "x",
        "huge": lambda _: torch.ones(1).expand(10**9), "empty": lambda x: x[:0], "longer": lambda x: torch.cat([x, x]),
        "float8": lambda x: x.to(torch.float8_e4m3fn), "twice": lambda x: [x, x], "number": lambda _: 10**30,
    }  # fmt: skip
    kind = draw.choice([*changes, "renamed", "absent"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in changes:
            state[name] = changes[kind](state[name])
        else:
            found = state.pop(name)
            state |= {f"{name}\x1b[2J": found} if kind == "renamed" else {}
        torch.save(state, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    return f"{name}: {kind}"


def edit_npz(path: Path, draw: random.Random) -> str:
    """Other arrays than samples."""
    pixels = np.zeros((4, 4, 4, 3), np.uint8)
    kinds = {
        "objects": {"arr_0": np.array([{}, None], dtype=object)}, "float": {"arr_0": pixels.astype(float)},
        "flat": {"arr_0": pixels.ravel()}, "none": {}, "scalar": {"arr_0": np.uint8(1)},
        "labels": {"arr_0": pixels, "arr_1": np.array(["a"] * 4)}, "few": {"arr_0": pixels, "arr_1": np.arange(2)},
        "negative": {"arr_0": pixels, "arr_1": np.arange(4) - 9}, "other": {"x": pixels},
        "no images": {"arr_0": pixels[:0]},
    }  # fmt: skip
    kind = draw.choice(["huge", *sorted(kinds)])
    if kind in kinds:
        np.savez(path, **kinds[kind])  # type: ignore[arg-type]
    else:
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 4, 3)}
            np.lib.format.write_array_header_1_0(file, header)
    return kind


def edit_png(path: Path, draw: random.Random) -> str:
    """Change one number of a PNG header, with the right checksum: size, bit depth or kind of colour."""
    data = bytearray(path.read_bytes())
    at = draw.choice([16, 20, 24, 25])
    if at < 24:
        data[at : at + 4] = struct.pack(">I", number := draw.choice([0, 1, 33, 9_000, 2**24, 2**31 - 1]))
    else:
        data[at] = number = draw.choice([0, 1, 2, 3, 4, 6, 16, 255])
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return f"byte {at} = {number}"
