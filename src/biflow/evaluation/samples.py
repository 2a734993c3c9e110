"""Samples in shards on disk, so that an interrupted evaluation resumes.

The sample at an index depends only on the model and the sampling settings, not on the process or the shard.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from biflow.config.base import Config, check_recorded, to_yaml
from biflow.data.randomness import stream
from biflow.features.metric_networks import FeatureNet, Features
from biflow.files import check_new_folder, replace_file, write_text
from biflow.sampling.draw import Drawn
from biflow.tensors import hash_tensors, write_safetensors

SHARD_SIZE = 500  # images; at most this many are lost by an interruption
SETTINGS_FILE = "settings.yaml"


class SampleSettings(Config):
    """The settings that the samples in a folder depend on; it resumes only with the same ones."""

    weights: str  # SHA-256 of the model's weights file
    model: str = ""  # SHA-256 of its sizes and its autoencoder
    method: str
    guidance: str
    labels: str
    seed: int
    redraw: bool


class SampleFolder:
    """The first samples, with these labels (num,), in a folder of shards; each process draws its own share."""

    def __init__(self, folder: Path, labels: Tensor, *, rank: int, size: int) -> None:
        self.folder = folder
        self.shards = list(enumerate(labels.split(SHARD_SIZE)))
        self.own = self.shards[rank::size]

    def draw(self, draw: Callable[[int, Tensor], Drawn], progress: Callable[[int], None]) -> None:
        """Draw the missing shards of this process: draw(first index, labels) -> images.

        progress(n) is called after every n images.
        """
        for i, labels in self.own:
            path = _shard(self.folder, i)
            if _count(path) < len(labels):
                drawn = draw(i * SHARD_SIZE, labels)
                _save(path, {"pixels": drawn.pixels, "labels": labels, "redrawn": torch.tensor([drawn.broken])})
            progress(len(labels))

    def measure(self, net: FeatureNet, folder: Path, *, batch_size: int, progress: Callable[[int], None]) -> None:
        """Write a network's missing features of this process's shards into their own folder."""
        for i, labels in self.own:
            path, pixels = _shard(folder, i), load_file(_shard(self.folder, i))["pixels"]
            of = hash_tensors({"pixels": pixels}, prefix=f"{net.identity()} {net.preprocessing}")
            if _count(path, of) < len(labels):
                features = features_of(net, pixels, batch_size=batch_size)
                _save(path, {name: value for name, value in features._asdict().items() if value is not None}, of)
            progress(len(labels))

    def read(self, folder: Path) -> list[dict[str, Tensor]]:
        """The tensors of every shard in `folder`: the images, or the features that `measure` wrote.

        Cut to the images that are asked for: an earlier command may have drawn more.
        """
        parts = ((load_file(_shard(folder, i)), len(labels)) for i, labels in self.shards)
        return [{name: tensor[:count] for name, tensor in tensors.items()} for tensors, count in parts]


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
    batches = (net(batch) for batch in pixels.split(batch_size))
    return concatenate(Features._make(part if part is None else part.cpu() for part in found) for found in batches)


def concatenate(parts: Iterable[Features]) -> Features:
    """The features of one network for several batches, as one."""
    return Features._make(None if kind[0] is None else torch.cat(kind) for kind in zip(*parts, strict=True))


def _shard(folder: Path, i: int) -> Path:
    return folder / f"{i:05d}.safetensors"


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
    write_tensors(path, tensors, {"sha256": hash_tensors(tensors), "of": of})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file atomically, into a folder that is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        write_safetensors(tensors, temporary, metadata)
