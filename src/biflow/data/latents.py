"""Precomputed latents: moments of an autoencoder's posterior, in safetensors shards with checksums.

A cache is a folder of shards and a manifest that describes them and their origin. It stores moments instead of samples,
so that training samples new latents in every epoch.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, PositiveInt
from safetensors import safe_open
from torch import Tensor

from biflow.config import ReadingConfig
from biflow.config.base import Config, check_config
from biflow.console import printable
from biflow.data.datasets import ImageSource, Split, digest
from biflow.data.scan import in_chunks
from biflow.errors import InputError
from biflow.files import cache_folder, replace_file, write_text
from biflow.inputs import read_json
from biflow.tensors import file_checksum, read_shapes, write_safetensors

MANIFEST_FILE = "latents.json"
FORMAT_VERSION = 1
SHARD_SIZE = 512  # images; the most that interrupted encoding loses


class MomentsCodec(Protocol):
    """An autoencoder that gives the moments of its posterior."""

    def moments(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> means and log-variances (B, 2P', H', W')."""

    def identity(self) -> str:
        """A checksum of everything that determines the moments."""


class CodecFacts(Config):
    """The autoencoder that made a cache."""

    name: str
    sha256: str
    scaling: str | None = None
    scale: float | None = None  # of earlier caches, with the shift
    shift: float | None = None


class ShardFacts(Config):
    """One shard of a cache."""

    file: Annotated[str, Field(pattern=r"^(train|test)_[0-9]{5,9}\.safetensors$")]
    split: Literal["train", "test"]
    count: PositiveInt
    mirrored: bool
    bytes: PositiveInt
    sha256: str


class Manifest(Config):
    """What latents.json says of a cache, checked when it is read."""

    format_version: Literal[1]
    data: str = ""
    codec: CodecFacts
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    latent_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    class_names: tuple[str, ...]
    shards: tuple[ShardFacts, ...]
    sha256: str | None = None
    """Of all the rest; caches of earlier versions lack it."""


class LatentSet(ImageSource):
    """Moments of a cache's images, read by index; mirrored copies follow the originals."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], split: str) -> None:
        self.folder, self.manifest = folder, manifest
        self.shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        self.ends = list(accumulate(shard["count"] for shard in self.shards))
        self.class_names = tuple(map(printable, manifest["class_names"]))
        channels, height, width = manifest["image_shape"]
        self.image_shape = (channels, height, width)
        stored = [self._labels(shard) for shard in self.shards]
        self.labels = torch.cat([torch.empty(0).long(), *stored])

    def read(self, indices: Tensor) -> Tensor:
        """Means and log-variances of the images at these indices (n,): float32 (n, 2P, H, W)."""
        moments = []
        for index in indices.tolist():
            number = bisect_right(self.ends, index)
            start = self.ends[number] - self.shards[number]["count"]
            shard = safe_open(self.folder / self.shards[number]["file"], framework="pt")  # memory-maps the file
            moments.append(shard.get_slice("moments")[index - start])
        read = torch.stack(moments)
        if not read.isfinite().all():
            raise InputError(f"Expected finite moments in {self.folder}; got NaN or Inf. Encode again.")
        return read

    def listing_digest(self) -> str:
        """A digest of the shards' checksums and the class names."""
        return digest(self.class_names, [shard["sha256"] for shard in self.shards])

    def _labels(self, shard: Mapping[str, Any]) -> Tensor:
        """The labels of a shard's images, (n,); raises unless labels and moments have the sizes of the manifest."""
        path, count = self.folder / shard["file"], shard["count"]
        held = read_shapes(path, "the cache")
        moments, wanted = held.get("moments", ()), self.manifest.get("latent_shape")
        fits = len(moments) == 4 and moments[0] == count and not moments[1] % 2 and 0 not in moments
        fits = fits and (wanted is None or (moments[1] // 2, *moments[2:]) == tuple(wanted))
        if not fits or held.get("labels") != (count,):
            raise InputError(f"Expected moments and labels of {count} images in {path}; got others. Encode again.")
        tensors = safe_open(path, framework="pt")
        labels, dtype = tensors.get_tensor("labels"), tensors.get_slice("moments").get_dtype()
        most = max(1, len(self.class_names))
        if labels.dtype != torch.int64 or dtype != "F32" or not ((labels >= 0) & (labels < most)).all():
            raise InputError(
                f"Expected float32 moments and labels from 0 to {most - 1} in {path}; got others. Encode again."
            )
        return labels


def open_latents(folder: Path, reading: ReadingConfig) -> Split[LatentSet]:
    """Open a cache written by `biflow data encode`; raise unless it is complete."""
    if reading.flip or reading.test_share:
        key, value = ("flip", "false") if reading.flip else ("test_share", "0")
        raise InputError(
            f"Expected reading.{key}={value} with latents, whose flips and splits are fixed when encoding. "
            f"Set it, and encode with --set reading.{key}=... instead."
        )
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise InputError(f"Expected {shard['bytes']} bytes in {path}; it is missing or truncated. Encode again.")
    verify_shards(folder, manifest["shards"])
    return Split(LatentSet(folder, manifest, "train"), LatentSet(folder, manifest, "test"))


def verify_shards(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    """Raise at a shard that differs from its checksum; those verified earlier and unchanged since are not read."""
    checksums = {shard["file"]: shard["sha256"] for shard in shards}
    marks = {name: f"{sha256} {(folder / name).stat().st_mtime_ns}" for name, sha256 in checksums.items()}
    record = cache_folder() / "latents" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"
    verified = _read_marks(record)
    new = [name for name in checksums if marks[name] not in verified]

    def changed(names: Sequence[str]) -> list[str]:
        return [name for name in names if _differs(folder / name, checksums[name])]

    for found in in_chunks(new, changed, "verifying latents"):
        if found:
            raise InputError(
                f"Expected the shard that was encoded in {folder / found[0]}; it has changed since. Encode again."
            )
    if new:
        with suppress(OSError, InputError):  # it is verified again the next time
            write_text(record, json.dumps([*marks.values()]))


def _read_marks(record: Path) -> set[str]:
    """The checksums and modification times of the shards that were verified; empty without a record."""
    try:
        return set(map(str, read_json(record, "")))
    except (InputError, TypeError):
        return set()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a cache; raises unless it is whole and what `biflow data encode` wrote."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise InputError(
            f"Expected complete latents in {folder}; it has no {MANIFEST_FILE}. Run biflow data encode to its end."
        )
    content = read_json(path, "Encode again.")
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise InputError(f"Expected a manifest of latents, format {FORMAT_VERSION}, in {path}. Encode again.")
    check_config(Manifest, content, origin=str(path))
    names = [shard["file"] for shard in content["shards"]]
    if content.get("sha256", found := manifest_checksum(content)) != found or len({*names}) < len(names):
        raise InputError(f"Expected the manifest that was written in {path}; it has changed since. Encode again.")
    return content


def manifest_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum."""
    facts = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def damaged_shards(folder: Path) -> list[str]:
    """The shards whose checksum differs from the manifest; reads all files."""
    shards = read_manifest(folder)["shards"]
    return [shard["file"] for shard in shards if _differs(folder / shard["file"], shard["sha256"])]


def _differs(path: Path, checksum: str) -> bool:
    return not path.is_file() or file_checksum(path) != checksum


class LatentShard(NamedTuple):
    """A shard to write."""

    name: str
    mirrored: bool
    indices: Tensor  # of its images in the split


class LatentWriter:
    """Writes a cache shard by shard, skipping those of other processes and those already written."""

    def __init__(self, folder: Path, codec: MomentsCodec, *, flip: bool, batch_size: int, rank: int, size: int) -> None:
        self.folder, self.codec, self.flip = folder, codec, flip
        self.batch_size, self.rank, self.size = batch_size, rank, size
        self.identity = codec.identity()

    def write(self, data: ImageSource, split: str, progress: Callable[[int], None]) -> list[str]:
        """Write the shards of one split and return the names of all; progress(n) reports n finished images."""
        shards = self.shards(len(data), split)
        for name, mirrored, indices in self.own(shards):
            if not self._is_written(name, len(indices)):
                self._write_shard(name, data, indices, mirrored=mirrored)
            progress(len(indices))
        return [shard.name for shard in shards]

    def shards(self, count: int, split: str) -> list[LatentShard]:
        """All shards of a split with this many images."""
        copies = (False, True) if self.flip and split == "train" else (False,)
        parts = torch.arange(count).split(SHARD_SIZE) if count else ()
        contents = [(mirrored, indices) for mirrored in copies for indices in parts]
        return [LatentShard(f"{split}_{number:05d}.safetensors", *content) for number, content in enumerate(contents)]

    def own(self, shards: list[LatentShard]) -> list[LatentShard]:
        """The shards that this process writes."""
        return shards[self.rank :: self.size]

    def _write_shard(self, name: str, data: ImageSource, indices: Tensor, *, mirrored: bool) -> None:
        moments = []
        for batch in indices.split(self.batch_size):
            pixels = data.read(batch)
            moments.append(self.codec.moments(pixels.flip(-1) if mirrored else pixels).cpu())
        tensors = {"moments": torch.cat(moments), "labels": data.labels[indices]}
        with replace_file(self.folder / name) as temporary:
            write_safetensors(tensors, temporary)
        path = self.folder / name
        shard = {"file": name, "split": name.partition("_")[0], "count": len(indices), "mirrored": mirrored}
        facts = {**shard, "bytes": path.stat().st_size, "sha256": file_checksum(path), "codec": self.identity}
        write_text(description(path), json.dumps(facts) + "\n")

    def _is_written(self, name: str, count: int) -> bool:
        """Whether an earlier, interrupted command wrote this shard with this codec."""
        path = self.folder / name
        try:
            facts = read_json(description(path), "Encode again.")
            same = facts["count"] == count and facts["codec"] == self.identity
            return bool(same and facts["sha256"] == file_checksum(path))
        except (OSError, ValueError, KeyError, TypeError):
            return False


def write_manifest(folder: Path, names: list[str], facts: Mapping[str, Any]) -> int:
    """Finish a cache whose shards are all written by its manifest; returns the number of images."""
    shards = []
    for name in names:
        shard = read_json(description(folder / name), "Encode again.")
        shards.append({key: shard[key] for key in ("file", "split", "count", "mirrored", "bytes", "sha256")})
    content = {"format_version": FORMAT_VERSION, **facts, "shards": shards}
    content["sha256"] = manifest_checksum(content)
    write_text(folder / MANIFEST_FILE, json.dumps(content, indent=1) + "\n")
    for name in names:
        description(folder / name).unlink()
    return sum(shard["count"] for shard in shards)


def description(path: Path) -> Path:
    """The file with a shard's manifest entry, until the manifest is written."""
    return path.with_suffix(".json")
