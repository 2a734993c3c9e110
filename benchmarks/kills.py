"""Kill commands at every file operation, run them again, and compare the results with those of undisturbed ones.

    python benchmarks/kills.py            # a quarter of an hour; adds the table to docs/results/faults.{md,json}

Each command runs in a process that kills itself with SIGKILL before it changes a file or folder of its output for the
n-th time, for n = 0, 1, ... until it ends.  The command then runs again, with `--resume` where it has that; it must end
with code 0, and leave the files of an undisturbed command with the same contents.  Files that differ between two
undisturbed commands, as times do, only have to be there.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import faults
import torch

from biflow.checkpoint import save_model
from biflow.config import load_recipe
from biflow.data.datasets import load_data
from biflow.data.images import write_images
from biflow.features.judge import Judge, save_judge
from biflow.files import LOCK_FILE
from biflow.models.model import new_model

FORK = multiprocessing.get_context("fork")  # children do not import everything again
CHANGES = {f"os.{name}" for name in ("rename", "mkdir", "remove", "rmdir", "truncate", "chmod", "link", "symlink")}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PRELOADED = (
    "pipeline",
    "evaluation.evaluate",
    "export.onnx",
    "hub.tarflow",
    "training.cache_latents",
    "quickstart.run",
)
SIZES = ("flow.width=32", "flow.blocks=2", "flow.layers=1", "reverse.width=32", "reverse.layers=1")
SETTINGS = [f"model.{size}" for size in SIZES] + [
    f"{stage}.{key}" for stage in ("fit_flow", "fit_reverse") for key in ("steps=4", "save_every=2", "batch_size=8")
]  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "tarflow_conditional.pth"


class Command(NamedTuple):
    """A command line, run in an empty folder; it writes to `out` there."""

    words: list[str]
    resumes: bool = False  # by --resume, if there is something to resume


class Result(NamedTuple):
    """What a command left."""

    code: int  # negative if it was killed
    said: str
    files: Mapping[str, bytes]


def make_commands(base: Path) -> dict[str, Command]:
    """The commands, with the model, images and autoencoder that they use, made in `base`."""
    config = load_recipe("biflow_digits", SETTINGS)
    data = load_data("digits")
    save_model(new_model(config.model, data.train.class_names, seed=0), base / "model")
    for kind in ("a", "b"):
        write_images(base / "images" / kind, data.test.images[:6].expand(-1, 3, -1, -1), data.test.labels[:6])
    model, images = str(base / "model"), str(base / "images")
    settings = [*SETTINGS, "fit_flow.keep_last=1", "fit_flow.log_every=1", "watch.preview_every=2"]
    sets = [word for each in settings for word in ("--set", each)]
    save_judge(Judge(1, 10), base / "judge")
    evaluate = ["evaluate", model, "--data", "digits", "--features", f"judge:{base / 'judge'}"]
    found = {
        "train": Command(["train", "biflow_digits", *sets, "--out", "out"], resumes=True),
        "sample": Command(["sample", model, "--num", "4", "--out", "out.png"]),
        "sample, a folder": Command(["sample", model, "--num", "4", "--out", "out"]),
        "score": Command(["score", model, images, "--out", "out/scores.csv"]),
        "evaluate": Command([*evaluate, "--num", "20", "--set", "npz=out/out.npz", "--out", "out"]),
        "export": Command(["export", model, "--to", "torch", "--out", "out.pt2"]),
        "push --preview": Command(["push", model, "owner/name", "--preview", "out"]),
        "import": Command(["import", "tarflow", str(GOLDEN), "--noise-std", "0", "--image-size", "8", "--out", "out"]),
        "quickstart": Command(["quickstart", "--smoke", "--out", "out"], resumes=True),
    }  # fmt: skip
    try:
        autoencoder = make_autoencoder(base / "autoencoder")
    except ImportError:
        return found
    encode = ["data", "encode", f"folder:{images}", "--vae", autoencoder, "--size", "8", "--batch-size", "4"]
    return {**found, "data encode": Command([*encode, "--out", "out", "--set", "reading.test_share=0.5"])}


def make_autoencoder(folder: Path) -> str:
    """A small autoencoder of random weights."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    torch.manual_seed(0)
    AutoencoderKL(**sizes, **blocks, sample_size=8).save_pretrained(folder)
    return str(folder)


def run(words: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> Result:
    """Run a command in this folder, in a process of its own."""
    with tempfile.TemporaryFile("w+") as said:

        def work() -> None:
            os.chdir(folder)
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            torch.set_num_threads(1)
            sys.argv = ["biflow", *words]
            from biflow.cli.main import main

            before()
            main()

        process = FORK.Process(target=work)
        process.start()
        process.join()
        said.seek(0)
        text = said.read()
    files = {str(each.relative_to(folder)): contents(each) for each in folder.rglob("*") if is_result(each)}
    return Result(int(process.exitcode or 0), text, files)


def is_result(path: Path) -> bool:
    """Whether this is a file that the command was asked for."""
    return path.is_file() and path.name != LOCK_FILE


def contents(path: Path) -> bytes:
    """The contents of a file; safetensors writes metadata in any order, so that is sorted."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def kill_before(number: int, folder: Path) -> None:
    """Kill this process before its n-th change below the folder, counted from 0."""
    operations = count()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if changes and any(lies_in(each, folder) for each in arguments) and next(operations) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def lies_in(path: Any, folder: Path) -> bool:
    """Whether an argument of an operation is a path below the folder, or relative to it or to an open folder."""
    if isinstance(path, bytes | os.PathLike):
        path = os.fsdecode(path)
    return isinstance(path, str) and (not path.startswith("/") or path.startswith(f"{folder}/")) and len(path) > 2


def again(command: Command, folder: Path) -> list[str]:
    """The command that continues in this folder."""
    return command.words + ["--resume"] * (command.resumes and (folder / "out").exists())


def kill_everywhere(command: Command, base: Path, *, every: int = 1) -> dict[str, Any]:
    """Kill a command before every change (or every n-th), run it again, and list what went wrong."""
    folder = base / "run"

    def fresh() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    whole, other = run(command.words, fresh()), run(command.words, fresh())
    if whole.code or other.code:
        raise RuntimeError(f"biflow {' '.join(command.words)} failed:\n{whole.said}{other.said}")
    steady = {name for name in whole.files if whole.files[name] == other.files.get(name)}
    faults, kills = [], 0
    for number in count(0, every):
        stopped = run(command.words, fresh(), lambda number=number: kill_before(number, folder))
        if stopped.code == 0:
            break
        kills += 1
        if not difference(whole, stopped._replace(code=0), steady):
            continue  # all was written
        if fault := difference(whole, run(again(command, folder), folder), steady):
            faults.append(f"killed before change {number}: {fault}")
    return {"kills": kills, "compared": len(steady), "files": len(whole.files), "faults": faults}


def difference(whole: Result, second: Result, steady: set[str]) -> str | None:
    """How a command's result differs from an undisturbed one's, or None."""
    if second.code:
        return f"exit code {second.code}: {second.said.strip().splitlines()[-1:]}"
    if names := set(whole.files) ^ set(second.files):
        return f"other files: {', '.join(sorted(names))}"
    if changed := [name for name in sorted(steady) if whole.files[name] != second.files[name]]:
        return f"other contents: {', '.join(changed)}"
    return None


def main() -> None:
    """Kill commands everywhere, and add the table of all to the page of faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="By default all; of a selection nothing is written.")
    parser.add_argument("--every", type=int, default=1, help="Kill only before every n-th change.")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for module in PRELOADED:
        importlib.import_module(f"biflow.{module}")
    with tempfile.TemporaryDirectory() as base:
        commands = make_commands(Path(base))
        found = {}
        for name in arguments.commands or commands:
            found[name] = kill_everywhere(commands[name], Path(base), every=arguments.every)
            print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)
    if not arguments.commands:
        faults.add_to_page(arguments.out, {"operations": found})


if __name__ == "__main__":
    main()
