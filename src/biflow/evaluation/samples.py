"""Many images drawn by number, in shards on disk, so that a command that was stopped goes on.

The image of a number depends on the model and on how it is drawn alone: neither on the process nor on the shard.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from biflow.config.base import Config, first_difference, parse_config, to_yaml
from biflow.data.randomness import stream
from biflow.errors import InputError
from biflow.features.metric_networks import FeatureNet, Features
from biflow.files import check_new_folder, replace_file, write_text
from biflow.tensors import hash_tensors

SHARD_SIZE = 500  # images: what a stop may cost
SETTINGS_FILE = "settings.yaml"


class SampleSettings(Config):
    """All that the images of a folder depend on; a command goes on only with the same."""

    weights: str  # SHA-256 of the model's file of tensors
    method: str
    guidance: str
    labels: str
    seed: int
    redraw: bool


class Shard(NamedTuple):
    """Some of the images, by number."""

    name: str
    numbers: range


class Filling(NamedTuple):
    """The images of a shard, and how many of them had to be drawn again."""

    pixels: Tensor  # uint8 (N, P, H, W)
    redrawn: int


class SampleFolder:
    """The first `num` images in a folder of shards; those of other processes are left to them."""

    def __init__(self, folder: Path, num: int, *, rank: int = 0, size: int = 1) -> None:
        self.folder, self.num = folder, num
        starts = range(0, num, SHARD_SIZE)
        self.shards = [
            Shard(f"{start // SHARD_SIZE:05d}.safetensors", range(start, min(start + SHARD_SIZE, num)))
            for start in starts
        ]
        self.own = self.shards[rank::size]

    def draw(self, labels: Tensor, draw: Callable[[int, Tensor], Filling], progress: Callable[[int], None]) -> None:
        """Draw this process's shards that are not there: draw(first number, labels) -> images.

        labels (num,) of all images.  progress(n) is told of every n images done.
        """
        for shard in self.own:
            path, numbers = self.folder / shard.name, shard.numbers
            if _count(path) < len(numbers):
                drawn = draw(numbers.start, labels[numbers.start : numbers.stop])
                redrawn = torch.tensor([drawn.redrawn])
                _save(
                    path, {"pixels": drawn.pixels, "labels": labels[numbers.start : numbers.stop], "redrawn": redrawn}
                )
            progress(len(numbers))

    def measure(self, net: FeatureNet, folder: Path, *, batch_size: int, progress: Callable[[int], None]) -> None:
        """Write a network's features of this process's shards that are not there yet into a folder of their own."""
        for shard in self.own:
            path, pixels = folder / shard.name, load_file(self.folder / shard.name)["pixels"]
            of = hash_tensors({"pixels": pixels})
            if _count(path, of) < len(shard.numbers):
                features = features_of(net, pixels, batch_size=batch_size)
                _save(path, {name: value for name, value in features._asdict().items() if value is not None}, of)
            progress(len(shard.numbers))

    def pixels(self) -> Tensor:
        """All images: uint8 (num, P, H, W)."""
        return torch.cat([self._read(shard)["pixels"] for shard in self.shards])

    def labels(self) -> Tensor:
        """The labels that they were drawn with: (num,)."""
        return torch.cat([self._read(shard)["labels"] for shard in self.shards])

    def redrawn(self) -> int:
        """How many of all images were drawn again."""
        return sum(int(load_file(self.folder / shard.name)["redrawn"]) for shard in self.shards)

    def features(self, folder: Path) -> Features:
        """What `measure` wrote, of all images."""
        found = [load_file(folder / shard.name) for shard in self.shards]
        counts = [len(shard.numbers) for shard in self.shards]

        def joined(name: str) -> Tensor | None:
            parts = [each[name][:count] for each, count in zip(found, counts, strict=True) if name in each]
            return torch.cat(parts) if parts else None

        pooled = joined("pooled")
        assert pooled is not None
        return Features(pooled, joined("spatial"), joined("logits"))

    def _read(self, shard: Shard) -> dict[str, Tensor]:
        """A shard; one of a longer list may hold more images than are asked for."""
        tensors = load_file(self.folder / shard.name)
        return {name: tensors[name][: len(shard.numbers)] for name in ("pixels", "labels")}


def take_up(folder: Path, settings: SampleSettings) -> None:
    """Begin a folder of images drawn with these settings, or go on in it; raise if it holds others."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        check_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, to_yaml(settings))
        return
    recorded = parse_config(SampleSettings, file.read_text(encoding="utf-8"), origin=str(file))
    if difference := first_difference(recorded, settings):
        key, old, new = difference
        what = "the weights of the model" if key == "weights" else f"{key}={old}"
        raise InputError(
            f"Expected to go on with {what} of the samples in {folder}; got {'others' if key == 'weights' else new}. "
            "Evaluate with the same, or into another folder."
        )


def make_labels(schedule: str, num: int, num_classes: int, seed: int) -> Tensor:
    """The labels of the first `num` images: classes in turn ("balanced") or drawn for each ("random"); 0 without any.

    >>> make_labels("balanced", 5, 3, seed=0).tolist()
    [0, 1, 2, 0, 1]
    """
    if not num_classes or schedule == "balanced":
        return torch.arange(num) % max(1, num_classes)
    return torch.from_numpy(stream("labels", seed).integers(num_classes, size=num))


def features_of(net: FeatureNet, pixels: Tensor, *, batch_size: int) -> Features:
    """What a network makes of images, uint8 (N, P, H, W), batch by batch; on the CPU."""
    found = list(each_batch(net, pixels, batch_size))

    def joined(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    pooled = torch.cat([each.pooled for each in found])
    return Features(pooled, joined([each.spatial for each in found]), joined([each.logits for each in found]))


@torch.inference_mode()
def each_batch(net: FeatureNet, pixels: Tensor, batch_size: int) -> Iterator[Features]:
    """The features of one batch after another, on the CPU."""
    device = next(net.parameters()).device
    for batch in pixels.split(batch_size):
        found = net(batch.to(device))
        pooled, spatial, logits = (None if part is None else part.float().cpu() for part in found)
        assert pooled is not None
        yield Features(pooled, spatial, logits)


def _count(path: Path, of: str = "") -> int:
    """How many images a shard holds, or one of features of these pixels; none if it is not there, or has changed."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return 0
    sound = facts.get("of", "") == of and facts.get("sha256") == hash_tensors(tensors)
    return max(map(len, tensors.values())) if sound else 0


def _save(path: Path, tensors: dict[str, Tensor], of: str = "") -> None:
    """Write a shard with its checksum; of: the checksum of the pixels that features are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": hash_tensors(tensors), "of": of})
