"""Provenance of a run: git revision, packages and machine of each session, for about.json."""

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

import biflow
from biflow._version import __version__
from biflow.config import RunConfig
from biflow.distributed import World
from biflow.files import write_text
from biflow.training.hooks import read_history

CORE = ("torch", "numpy", "pillow", "safetensors", "pydantic", "huggingface_hub")
NOT_METRICS = {"stage", "step", "seconds", "grad_norm", "skipped"}


def add_session(path: Path, world: World) -> None:
    """Append this session to the list in about.json."""
    sessions = []
    with suppress(OSError, ValueError):
        sessions = json.loads(path.read_text(encoding="utf-8"))
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


def git_revision() -> str | None:
    """Commit of biflow's source, with a plus if it has local changes; None if it is not in a git repository."""
    folder = Path(biflow.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("cat-file", "-e", "HEAD:./__init__.py")  # the package may be installed inside another repository
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
    fits = {"flow": config.fit_flow, "joint": config.fit_flow, "reverse": config.fit_reverse}
    stages: dict[str, Any] = {}
    for stage, spent in seconds.items():
        last: dict[str, Any] = next((line for line in reversed(lines) if line["stage"] == stage), {})
        metrics = {key: value for key, value in last.items() if key not in NOT_METRICS and value is not None}
        size = getattr(fits.get(stage), "batch_size", None)
        stages[stage] = {"steps": last.get("step"), "batch_size": size, "seconds": spent, "last": metrics}
    facts = {"data": config.data, "seed": config.seed, "stages": stages}
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
