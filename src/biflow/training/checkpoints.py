"""Checkpoints of a training stage, written atomically and verified by checksum when loaded.

A checkpoint is a folder with the state and a manifest: step, metrics, and size and SHA-256 of each file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biflow.config import FitConfig
from biflow.files import delete_folder, replace_folder
from biflow.inputs import read_text
from biflow.tensors import file_checksum

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; its checksums were verified if `read` returned it."""

    folder: Path
    step: int
    metrics: Mapping[str, float]

    def load(self, device: torch.device) -> dict[str, Any]:
        """Load the state that was passed to `save`."""
        return dict(torch.load(self.folder / STATE_FILE, map_location=device, weights_only=True))


class Damaged(Exception):
    """A checkpoint file is missing or fails its checksum; the message names it."""


def save(folder: Path, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
    """Write a checkpoint into the stage's folder, atomically."""
    with replace_folder(folder / f"step_{step:08d}") as temporary:
        with (temporary / STATE_FILE).open("wb") as file:
            torch.save(dict(state), file)
        content = {"format_version": FORMAT_VERSION, "step": step, "metrics": dict(metrics)}
        content["files"] = {STATE_FILE: fingerprint(temporary / STATE_FILE)}
        (temporary / MANIFEST_FILE).write_text(render_manifest(content), encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """Open a checkpoint and verify its checksums; raises `Damaged`."""
    manifest = read_manifest(folder / MANIFEST_FILE)
    for name, expected in manifest["files"].items():
        try:
            found = fingerprint(folder / name)
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read ({error.strerror})") from None
        if found != expected:
            size = f"{found['bytes']} bytes of {expected['bytes']}"
            raise Damaged(f"{folder / name} has changed ({size if found['bytes'] != expected['bytes'] else 'SHA-256'})")
    return Checkpoint(folder, manifest["step"], manifest["metrics"])


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The intact checkpoint with the most steps, if any, and the faults of the damaged ones."""
    found, faults = listed(folder)
    for each in reversed(found):
        try:
            return read(each.folder), faults
        except Damaged as fault:
            faults.append(str(fault))
    return None, faults


def tidy(folder: Path, config: FitConfig) -> None:
    """Delete all checkpoints but the newest `keep_last`, the best by `best_by`, and multiples of `keep_every`."""
    found, _ = listed(folder)  # damaged ones stay for inspection
    scored = [each for each in found if config.best_by in each.metrics]
    best = min(scored, key=lambda each: each.metrics[str(config.best_by)], default=None)
    for each in found[: -config.keep_last]:
        milestone = config.keep_every is not None and each.step % config.keep_every == 0
        if each is not best and not milestone:
            delete_folder(each.folder)


def listed(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """A stage's checkpoints by step, their states not verified yet, and the faults of damaged manifests."""
    found, faults = [], []
    for each in sorted(folder.glob("[!.]*/")):  # without unfinished ones
        try:
            manifest = read_manifest(each / MANIFEST_FILE)
            found.append(Checkpoint(each, manifest["step"], manifest["metrics"]))
        except Damaged as fault:
            faults.append(str(fault))
    return sorted(found, key=lambda each: each.step), faults


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_checksum(path)}


def render_manifest(content: Mapping[str, Any]) -> str:
    """Serialise a manifest; its last key is the checksum of the rest."""
    text = json.dumps(content, indent=1)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and verify its checksum; raises `Damaged`."""
    try:
        text = read_text(path)
        content = json.loads(text)
        content.pop("sha256")
        intact = render_manifest(content) == text and content["format_version"] == FORMAT_VERSION
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise Damaged(f"{path} has changed")
    return dict(content)
