"""The reference classifier for small images, trained only on real images and used to evaluate samples."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biflow.errors import InputError
from biflow.features.pretrained import freeze
from biflow.files import check_new_folder, replace_folder
from biflow.inputs import brief, read_json
from biflow.tensors import hash_tensors, read_safetensors, write_safetensors

CONFIG_FILE, WEIGHTS_FILE = "judge.json", "judge.safetensors"
FORMAT_VERSION = 1
MOST_SIZE = 100_000  # channels or classes


class Judge(nn.Module):
    """Reference classifier: predicts classes, and gives the features for Fréchet distances."""

    WIDTH, FEATURE_WIDTH, GRID = 32, 64, 4

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        width = self.WIDTH
        self.trunk = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
            nn.AdaptiveAvgPool2d(self.GRID),
            nn.Flatten(),
            *(nn.Linear(2 * width * self.GRID**2, self.FEATURE_WIDTH), nn.ReLU()),
        )
        self.readout = nn.Linear(self.FEATURE_WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, P, H, W) in [-1, 1] -> logits (B, num_classes)."""
        return self.readout(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """images (B, P, H, W) in [-1, 1] -> features (B, F), the last hidden layer."""
        return self.trunk(images)


def save_judge(judge: Judge, folder: Path) -> None:
    """Write judge.json and judge.safetensors atomically, to a new folder or over another judge."""
    if not (folder / CONFIG_FILE).exists():
        check_new_folder(folder)
    sizes: dict[str, Any] = {"format_version": FORMAT_VERSION, "channels": judge.channels}
    sizes |= {"num_classes": judge.num_classes, "sha256": hash_tensors(judge.state_dict())}
    with replace_folder(folder) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        write_safetensors(judge.state_dict(), temporary / WEIGHTS_FILE)


def load_judge(folder: Path) -> Judge:
    """Load a judge from its folder, on the CPU, frozen and in eval mode."""
    channels, num_classes, digest = _read_sizes(folder / CONFIG_FILE)
    with torch.device("meta"):  # no random init for weights that are replaced
        judge = Judge(channels, num_classes)
    weights = read_safetensors(folder / WEIGHTS_FILE, "the judge's folder")
    if digest is not None and digest != hash_tensors(weights):
        raise InputError(f"Expected the weights that were saved in {folder}; they have changed. Copy the folder again.")
    origin = f"weights that belong to {folder / CONFIG_FILE}"
    return freeze(judge, weights, origin=origin, hint="Copy the whole folder.")


def _read_sizes(path: Path) -> tuple[int, int, str | None]:
    content = read_json(path, "Give a folder written by save_judge, or copy it again.")
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    version, channels, num_classes = (found.get(key) for key in ("format_version", "channels", "num_classes"))
    if version != FORMAT_VERSION:
        raise InputError(f"Expected format_version {FORMAT_VERSION} in {path}; got {version!r}. Save the judge again.")
    if not all(type(number) is int and 0 < number <= MOST_SIZE for number in (channels, num_classes)):
        raise InputError(
            f"Expected channels and num_classes in {path}, from 1 to {MOST_SIZE:,}; got "
            f"{brief(repr((channels, num_classes)))}. Copy it again."
        )
    return int(found["channels"]), int(found["num_classes"]), found.get("sha256")
