"""Checkpoints of a training stage: written whole, with checksums; the newest sound one is taken up.

Each is a folder with the state and a manifest that names its step, its metrics, and the size and SHA-256 of every file.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biflow.config import FitConfig
from biflow.files import replace_folder

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written."""

    folder: Path
    step: int
    metrics: Mapping[str, float]

    def load(self, device: torch.device) -> dict[str, Any]:
        """The state that `save` was given."""
        state: dict[str, Any] = torch.load(self.folder / STATE_FILE, map_location=device, weights_only=True)
        return state


class Damaged(Exception):
    """A checkpoint whose files are not as they were written; the text says which and how."""


def save(folder: Path, state: Mapping[str, Any], *, step: int, metrics: Mapping[str, float]) -> None:
    """Write a checkpoint of this step into the stage's folder, whole or not at all."""
    with replace_folder(folder / f"step_{step:08d}") as temporary:
        with (temporary / STATE_FILE).open("wb") as file:
            torch.save(dict(state), file)
        content = {"format_version": FORMAT_VERSION, "step": step, "metrics": dict(metrics)}
        content["files"] = {STATE_FILE: fingerprint(temporary / STATE_FILE)}
        (temporary / MANIFEST_FILE).write_text(render_manifest(content), encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """The checkpoint in this folder, its checksums verified; raise `Damaged` if a byte of it has changed."""
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
    """The sound checkpoint with the most steps, if there is one, and what is wrong with those passed over."""
    faults, sound = [], []
    for candidate in folders(folder):
        try:
            sound.append((read_manifest(candidate / MANIFEST_FILE)["step"], candidate))
        except Damaged as fault:
            faults.append(str(fault))
    for _, candidate in sorted(sound, reverse=True):
        try:
            return read(candidate), faults
        except Damaged as fault:
            faults.append(str(fault))
    return None, faults


def tidy(folder: Path, config: FitConfig) -> None:
    """Delete the checkpoints that the settings do not keep: all but the last ones, the best, and every n-th."""
    kept = []
    for candidate in folders(folder):
        with suppress(Damaged):  # a damaged one is left to be looked at
            manifest = read_manifest(candidate / MANIFEST_FILE)
            kept.append((manifest["step"], manifest["metrics"], candidate))
    kept.sort(key=lambda each: each[0])
    scored = [each for each in kept if config.best_by in each[1]]
    best = min(scored, key=lambda each: each[1][config.best_by])[0] if scored else None
    for step, _, candidate in kept[: -config.keep_last]:
        milestone = config.keep_every is not None and step % config.keep_every == 0
        if step != best and not milestone:
            shutil.rmtree(candidate)


def remove_leftovers(folder: Path) -> None:
    """Delete what a run left behind that died while it was writing."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)


def folders(folder: Path) -> Iterator[Path]:
    """All checkpoints of a stage, sound or not; none that was being written when the run died."""
    if folder.is_dir():
        yield from (each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith("."))


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def render_manifest(content: Mapping[str, Any]) -> str:
    """A manifest as text, which ends with its own checksum."""
    text = json.dumps(content, indent=1)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest; raise `Damaged` unless every byte of it is as it was written."""
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        content.pop("sha256")
        sound = render_manifest(content) == text and content["format_version"] == FORMAT_VERSION
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise Damaged(f"{path} has changed")
    return dict(content)
