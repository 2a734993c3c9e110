"""`biflow doctor`: installed packages, visible hardware, missing extras."""

import importlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from biflow._version import __version__
from biflow.console import console, table, tell
from biflow.extras import ADVISORIES, DISTRIBUTIONS, EXTRAS
from biflow.files import cache_folder

Rows = list[list[str]]
GIB = 2.0**30
TRIED = ("torchvision", "diffusers", "transformers", "datasets", "gradio", "onnxruntime")  # to import
REPAIRS = {
    "torchvision": "This breaks transformers and diffusers; biflow does not need it: pip uninstall torchvision, or "
    "install the build that belongs to your torch."
}


def doctor() -> None:
    """Check installed extras, visible hardware and missing dependencies."""
    for title, rows in (("environment", environment_rows()), ("hardware", hardware_rows()), ("extras", extra_rows())):
        console.print(table(title, rows, numbers=False))
    for fault in (broken := faults()):
        tell(f"Broken: {fault}")
    if not broken:
        tell("Installed packages can be imported.")
    for advice in advisories():
        tell(advice)
    if missing := missing_extras():
        tell(f"Missing extras; install those that you need: pip install 'biflow[{','.join(missing)}]'")


def environment_rows() -> Rows:
    """Versions, and the source of biflow."""
    import torch
    from huggingface_hub import constants

    from biflow.training.provenance import git_revision

    revision, cache = git_revision(), cache_folder()
    source = f"{__version__}, {'commit ' + revision[:12] if revision else 'not from a clone'}"
    free = shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free / GIB
    offline = "set: only downloaded files are used" if constants.HF_HUB_OFFLINE else "not set: asked when needed"
    return [
        ["what", "found"],
        ["biflow", source],
        ["Python", f"{platform.python_version()} on {platform.platform()}"],
        ["torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"],
        ["downloads", f"{cache}, {free:,.0f} GiB free"],
        ["hub", f"HF_HUB_OFFLINE is {offline}"],
    ]


def hardware_rows() -> Rows:
    """Processors and memory."""
    import torch

    from biflow.training.provenance import describe_machine

    cpu = describe_machine(torch.device("cpu"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB if hasattr(os, "sysconf") else 0
    cores = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    rows = [["device", "found"], ["CPU", f"{cpu['device']}, {cores}"]]
    if memory:
        rows.append(["memory", f"{memory:,.0f} GiB"])
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        rows.append([f"GPU {index}", f"{gpu.name}, {gpu.total_memory / GIB:,.0f} GiB, {bfloat16}"])
    if not torch.cuda.device_count():
        rows.append(["GPU", "none usable by torch"])
    return rows


def extra_rows() -> Rows:
    """Every extra: its purpose, and its installed packages."""
    rows = [["extra", "for", "found"]]
    for extra, (purpose, modules) in EXTRAS.items():
        found = {DISTRIBUTIONS.get(module, module): _version(module) for module in modules}
        present = ", ".join(f"{name} {number}" for name, number in found.items() if number)
        missing = ", ".join(name for name, number in found.items() if not number)
        rows.append([extra, purpose, "; ".join(filter(None, [present, missing and f"missing: {missing}"]))])
    return rows


def missing_extras() -> list[str]:
    """Extras without any installed package."""
    return [extra for extra, (_, modules) in EXTRAS.items() if not any(map(_version, modules))]


def faults() -> list[str]:
    """Installed packages that cannot be imported, in sentences."""
    found = []
    for module in TRIED:
        try:
            if _version(module):
                importlib.import_module(module)
        except Exception as error:  # a broken package raises anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            repair = REPAIRS.get(module, "Install it again.")
            found.append(f"{module} is installed and cannot be imported ({reason}). {repair}")
    return found


def advisories() -> list[str]:
    """Installed packages with a known fault by which other people's files run code, in sentences."""
    found = []
    for module, (safe, fault) in ADVISORIES.items():
        number = _version(module)
        if number and Version(number) < Version(safe):
            package = DISTRIBUTIONS.get(module, module)
            found.append(f"Unsafe: {package} {number} ({fault}). Update it: pip install '{package}>={safe}'")
    return found


def _version(module: str) -> str | None:
    try:
        return version(DISTRIBUTIONS.get(module, module))
    except PackageNotFoundError:
        return None
