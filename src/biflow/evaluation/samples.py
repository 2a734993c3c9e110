"""Samples in shards on disk, so that an interrupted evaluation resumes.

The sample at an index depends only on the model and the sampling settings, not on the process or the shard.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from biflow.config.base import Config, check_recorded, to_yaml
from biflow.data.randomness import stream
from biflow.features.metric_networks import FeatureNet, Features
from biflow.files import check_new_folder, replace_file, write_text
from biflow.tensors import hash_tensors

SHARD_SIZE = 500  # images; at most this many are lost by an interruption
SETTINGS_FILE = "settings.yaml"


class SampleSettings(Config):
    """The settings that the samples in a folder depend on; it resumes only with the same ones."""

    weights: str  # SHA-256 of the model's weights file
    method: str
    guidance: str
    labels: str
    seed: int
    redraw: bool


class Shard(NamedTuple):
    """The file name of a shard, and the indices of its images."""

    name: str
    indices: range


class DrawnShard(NamedTuple):
    """The images of a shard, and how many of them were resampled."""

    pixels: Tensor  # uint8 (N, P, H, W)
    redrawn: int


class SampleFolder:
    """The first `num` samples in a folder of shards, of which each process draws its own share."""

    def __init__(self, folder: Path, num: int, *, rank: int = 0, size: int = 1) -> None:
        self.folder = folder
        starts = range(0, num, SHARD_SIZE)
        self.shards = [
            Shard(f"{start // SHARD_SIZE:05d}.safetensors", range(start, min(start + SHARD_SIZE, num)))
            for start in starts
        ]
        self.own = self.shards[rank::size]

    def draw(self, labels: Tensor, draw: Callable[[int, Tensor], DrawnShard], progress: Callable[[int], None]) -> None:
        """Draw the missing shards of this process: draw(first index, labels) -> images.

        labels (num,) of all images.  progress(n) is called after every n images.
        """
        for shard in self.own:
            path, start, stop = self.folder / shard.name, shard.indices.start, shard.indices.stop
            if _count(path) < stop - start:
                pixels, redrawn = draw(start, labels[start:stop])
                _save(path, {"pixels": pixels, "labels": labels[start:stop], "redrawn": torch.tensor([redrawn])})
            progress(stop - start)

    def measure(self, net: FeatureNet, folder: Path, *, batch_size: int, progress: Callable[[int], None]) -> None:
        """Write a network's missing features of this process's shards into their own folder."""
        for shard in self.own:
            path, pixels = folder / shard.name, load_file(self.folder / shard.name)["pixels"]
            of = hash_tensors({"pixels": pixels})
            if _count(path, of) < len(shard.indices):
                features = features_of(net, pixels, batch_size=batch_size)
                _save(path, {name: value for name, value in features._asdict().items() if value is not None}, of)
            progress(len(shard.indices))

    def pixels(self) -> Tensor:
        """All images: uint8 (num, P, H, W)."""
        return torch.cat([_read(self.folder, shard)["pixels"] for shard in self.shards])

    def labels(self) -> Tensor:
        """The labels that they were sampled with: (num,)."""
        return torch.cat([_read(self.folder, shard)["labels"] for shard in self.shards])

    def redrawn(self) -> int:
        """How many images were resampled."""
        return sum(int(load_file(self.folder / shard.name)["redrawn"]) for shard in self.shards)

    def features(self, folder: Path) -> Features:
        """The features of all images, as `measure` wrote them."""
        return _concatenate(Features(**_read(folder, shard)) for shard in self.shards)


def resume_or_start(folder: Path, settings: SampleSettings) -> None:
    """Start a folder of samples with these settings, or resume it; raise if its settings differ."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        check_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, to_yaml(settings))
        return
    check_recorded(file, settings, "Evaluate the same model with the same settings, or choose another --out.")


def make_labels(schedule: str, num: int, num_classes: int, seed: int) -> Tensor:
    """Labels of the first `num` samples: cycling through the classes ("balanced") or "random"; all 0 without classes.

    >>> make_labels("balanced", 5, 3, seed=0).tolist()
    [0, 1, 2, 0, 1]
    """
    if not num_classes or schedule == "balanced":
        return torch.arange(num) % max(1, num_classes)
    return torch.from_numpy(stream("labels", seed).integers(num_classes, size=num))


def features_of(net: FeatureNet, pixels: Tensor, *, batch_size: int) -> Features:
    """A network's features of images, uint8 (N, P, H, W), computed batch by batch; on the CPU."""
    return _concatenate(_each_batch(net, pixels, batch_size))


@torch.inference_mode()
def _each_batch(net: FeatureNet, pixels: Tensor, batch_size: int) -> Iterator[Features]:
    device = next(net.parameters()).device
    for batch in pixels.split(batch_size):
        found = net(batch.to(device))
        yield Features._make(None if part is None else part.float().cpu() for part in found)


def _concatenate(parts: Iterable[Features]) -> Features:
    """All of one network: they have the same kinds of features."""
    return Features._make(None if kind[0] is None else torch.cat(kind) for kind in zip(*parts, strict=True))


def _read(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """The tensors of a shard, cut to the images that are asked for: an earlier command may have drawn more."""
    return {name: tensor[: len(shard.indices)] for name, tensor in load_file(folder / shard.name).items()}


def _count(path: Path, of: str = "") -> int:
    """Number of images in a shard, or in the features of these pixels; 0 if the file is missing or corrupted."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return 0
    sound = facts.get("of", "") == of and facts.get("sha256") == hash_tensors(tensors)
    return max(map(len, tensors.values())) if sound else 0


def _save(path: Path, tensors: dict[str, Tensor], of: str = "") -> None:
    """Write a shard with its checksum; `of`: the checksum of the pixels whose features these are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": hash_tensors(tensors), "of": of})
