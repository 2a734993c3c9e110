"""Provenance of a run: git revision, packages and machine of each session, for about.json."""

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

import biflow
from biflow._version import __version__
from biflow.config import FitConfig, RunConfig
from biflow.console import some
from biflow.data.datasets import ImageStream, Source, digest
from biflow.data.open import canonical_name
from biflow.distributed import World
from biflow.errors import InputError
from biflow.files import write_text
from biflow.inputs import read_json
from biflow.training.hooks import read_history

CORE = ("torch", "numpy", "pillow", "safetensors", "pydantic", "huggingface_hub")
NOT_METRICS = {"stage", "step", "seconds", "grad_norm", "skipped"}


def add_session(path: Path, world: World) -> None:
    """Append this session to the list in about.json."""
    sessions = []
    with suppress(InputError):
        sessions = read_json(path, "")
    sessions = sessions if isinstance(sessions, list) else []
    write_text(path, json.dumps([*sessions, describe_session(world)], indent=1) + "\n")


def describe_session(world: World) -> dict[str, Any]:
    """Start time, git revision, package versions and machine of this session."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "biflow": __version__,
        "git": git_revision(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


def describe_data(data: Source) -> dict[str, Any]:
    """Which images these are: class names, images per class and a digest of the listing; of a stream its shards."""
    names = list(data.class_names)
    if isinstance(data, ImageStream):
        return {"class_names": names, "shards": data.num_shards}
    counts = data.labels.bincount(minlength=max(1, len(names))).tolist()
    return {"class_names": names, "images": counts, "listing": data.listing_digest()}


def check_same_data(path: Path, data: Mapping[str, Source]) -> None:
    """Record the data of each split in a file, or raise if the recorded ones are others."""
    now = {split: describe_data(part) for split, part in data.items()}
    if not path.exists():
        write_text(path, json.dumps(now, indent=1) + "\n")
        return
    then = read_json(path, "Restore it; to continue with the data as they are now, delete it.")
    if changes := [change for split in now if (change := describe_change(then, now, split))]:
        raise InputError(
            f"Expected the data that {path.parent} was begun with; {changes[0]}. Restore them, or start in a new "
            f"folder; to continue with the data as they are now, delete {path}."
        )


def describe_change(before: Any, after: Any, split: str) -> str | None:
    """What has changed in a split since `describe_data` described it, in words; None if nothing."""
    try:
        then, now = before[split], after[split]
        if then == now:
            return None
        names = list(zip_longest(then["class_names"], now["class_names"], fillvalue="missing"))
        counts = list(zip_longest(then.get("images", ()), now.get("images", ()), fillvalue=0))
    except (KeyError, TypeError, AttributeError):
        return "their record is damaged"
    if then.get("shards") != now.get("shards"):
        return f"there are {now.get('shards')} shards instead of {then.get('shards')}"
    if renamed := [f"class {i} was {a} and is {b}" for i, (a, b) in enumerate(names) if a != b]:
        return some(renamed, most=2)
    kinds = [f" of {name}" for name in now["class_names"]] or [""]
    pairs = zip(kinds, counts, strict=True)
    if other := [f"{new} {split} images{kind} instead of {old}" for kind, (old, new) in pairs if old != new]:
        return "there are " + some(other, most=2)
    return f"the {split} images differ in names, sizes, classes or order"


def git_revision() -> str | None:
    """Commit of biflow's source, with a plus if it has local changes; None if it is not in biflow's repository.

    The package may have been installed or copied into another repository, whose commits say nothing about it.
    """
    folder = Path(biflow.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if git("rev-parse", "--show-prefix") != "src/biflow/":
            return None
        if 'name = "biflow"' not in git("show", "HEAD:pyproject.toml"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of the installed required and optional dependencies."""
    try:
        names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requires("biflow") or []]
    except PackageNotFoundError:  # run from a source tree
        names = [*CORE]
    found = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def training_facts(config: RunConfig, seconds: Mapping[str, float], history: Path, world: World) -> dict[str, Any]:
    """How a model was trained, for its folder and model card. history: the run's metrics.jsonl."""
    lines = read_history(history)
    fits: dict[str, FitConfig | None] = {"flow": config.fit_flow, "joint": config.fit_flow}
    fits |= {"reverse": config.fit_reverse, "finish": config.fit_finish}
    stages: dict[str, Any] = {}
    for stage, spent in seconds.items():
        last: dict[str, Any] = next((line for line in reversed(lines) if line["stage"] == stage), {})
        metrics = {key: value for key, value in last.items() if key not in NOT_METRICS and value is not None}
        size = getattr(fits.get(stage), "batch_size", None)
        stages[stage] = {"steps": last.get("step"), "batch_size": size, "seconds": spent, "last": metrics}
    where = digest(canonical_name(config.data))  # not the path itself, which models that are shared would tell
    facts = {"data": config.data, "data_digest": where, "seed": config.seed, "stages": stages}
    return {**facts, **describe_session(world), "config": config.model_dump(mode="json")}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The machine that a measurement ran on, for its report."""
    processor, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists() and (names := re.findall(r"model name\s*: (.*)", info.read_text())):
        processor = names[0]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
