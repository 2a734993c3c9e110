"""Damaged and invented files: what becomes of 300 model folders, checkpoints, caches and samples, and of 300 images.

    python benchmarks/fuzz.py              # some minutes; adds the table to docs/results/faults.{md,json}

Each file is opened in a child process with 2 GiB of memory and 20 seconds.  The same seed makes the same files.
"""

import argparse
import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import faults
import numpy as np
import torch
from mutations import mutate
from PIL import Image
from torch import Tensor

from biflow.checkpoint import load_model, load_training, save_model
from biflow.config import FlowConfig, ModelConfig, ReadingConfig, ReverseConfig
from biflow.config.recipes import load_recipe, recipe_text
from biflow.data.datasets import ImageSet
from biflow.data.latents import LatentWriter, open_latents, write_manifest
from biflow.data.npz import read_samples, write_npz
from biflow.data.pictures import read_pictures
from biflow.errors import InputError
from biflow.features.judge import Judge, load_judge, save_judge
from biflow.files import write_text
from biflow.hub.tarflow import load_tarflow
from biflow.inputs import printable
from biflow.models.model import new_model
from biflow.tensors import hash_tensors
from biflow.training import checkpoints

MEMORY, SECONDS, LONGEST = 2 * 2**30, 20, 1000  # bytes above those of the start; per file; characters of a sentence
OUTCOMES = ("sentence", "unclear", "accepted", "accepted changed", "traceback", "memory", "hang")
PTH = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tarflow_conditional.pth"
FORK = multiprocessing.get_context("fork")


class Kind(NamedTuple):
    """A kind of file: how a sound one is made in a folder, how it is opened, and how many are tried."""

    make: Callable[[Path], None]
    open: Callable[[Path], str]  # a hash of everything that was read
    count: int
    sealed: bool = True  # by checksums, so that a damaged file must not be accepted with other numbers


class Slow(BaseException):
    """A file took longer than it may."""


class TinyCodec:
    """Stands for an autoencoder."""

    def moments(self, pixels: Tensor) -> Tensor:
        """uint8 (B, P, H, W) -> (B, 4, H, W)."""
        return pixels.float()[:, :1].repeat(1, 4, 1, 1) / 255

    def identity(self) -> str:
        """Its checksum."""
        return "tiny"


def tiny_model(*, reverse: bool) -> Any:
    """A model of 4x4 images with random weights, its reverse model fitted to its flow."""
    sizes: Any = {"layers": 1, "width": 16, "head_width": 8}
    config = ModelConfig(
        image_size=4, channels=1, patch_size=2, num_classes=3, noise_std=0.2, flow=FlowConfig(blocks=2, **sizes),
        reverse=ReverseConfig(**sizes) if reverse else None,
    )  # fmt: skip
    model = new_model(config, ("a", "b", "c"))
    if model.reverse:
        model.reverse.record_flow(model.flow)
    return model


def make_model(folder: Path) -> None:
    """A model folder with the record of its training."""
    stage = {"steps": 3, "batch_size": 4, "seconds": 1.5, "last": {"loss": 0.5}}
    save_model(tiny_model(reverse=True), folder, {"data": "digits", "seed": 0, "stages": {"flow": stage}})


def open_model(folder: Path) -> str:
    """Everything in a model folder."""
    model, training = load_model(folder), load_training(folder)
    del training  # of the run, and not of the model: numbers on a card, without a checksum
    facts = model.config.model_copy(update={"codec": "pixels"}).model_dump_json(), model.class_names
    return hash_tensors(model.networks.state_dict(), repr(facts))


def open_pth(folder: Path) -> str:
    """The weights of a published checkpoint."""
    return hash_tensors(load_tarflow(folder / PTH.name, noise_std=0.1, image_size=8).flow.state_dict())


def make_latents(folder: Path) -> None:
    """A cache of two shards of latents."""
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, torch.arange(6) % 2, ("a", "b"))
    folder.mkdir(parents=True)
    writer = LatentWriter(folder, TinyCodec(), flip=True, batch_size=4, rank=0, size=1)
    names = writer.write(data, "train", lambda _: None)
    facts = {"codec": {"name": "tiny", "sha256": "tiny"}, "image_shape": (3, 4, 4), "class_names": ["a", "b"]}
    write_manifest(folder, names, {"data": "x", "latent_shape": (2, 4, 4), **facts})


def open_cache(folder: Path) -> str:
    """All moments and labels of a cache."""
    data = open_latents(folder, ReadingConfig()).train
    moments = data.read(torch.arange(len(data)))
    return hash_tensors({"moments": moments, "labels": data.labels}, repr((data.class_names, data.image_shape)))


def make_state(folder: Path) -> None:
    """A checkpoint of a training."""
    checkpoints.save(folder, {"weights": torch.arange(99.0), "step": 7}, step=7, metrics={"loss": 0.5})


def open_state(folder: Path) -> str:
    """The state of a checkpoint."""
    found = checkpoints.read(folder / "step_00000007")
    state = found.load(torch.device("cpu"))
    return hash_tensors({"weights": state["weights"]}, repr((state["step"], found.step, found.metrics)))


def make_samples(folder: Path) -> None:
    """Samples in the ADM evaluator's format."""
    folder.mkdir(parents=True)
    write_npz(folder / "x.npz", torch.arange(192).view(4, 3, 4, 4).to(torch.uint8), torch.arange(4))


def open_samples(folder: Path) -> str:
    """The pixels and labels of samples."""
    found = read_samples(folder / "x.npz")
    return hash_tensors({"pixels": found.pixels}, repr(None if found.labels is None else found.labels.tolist()))


def make_recipe(folder: Path) -> None:
    """A recipe."""
    folder.mkdir(parents=True)
    write_text(folder / "x.yaml", recipe_text("biflow_digits"))


def open_recipe(folder: Path) -> str:
    """All settings of a recipe."""
    return load_recipe(str(folder / "x.yaml")).model_dump_json()


def copy_pth(folder: Path) -> None:
    """A checkpoint in ml-tarflow's format."""
    folder.mkdir(parents=True)
    shutil.copy(PTH, folder)


def image_kind(suffix: str, mode: str) -> Kind:
    """Images of one format; a damaged one may well decode to other pixels."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, len(mode)), dtype=np.uint8)
        Image.fromarray(pixels.squeeze(), mode if len(mode) > 1 else "L").save(folder / f"x.{suffix}")

    def look(folder: Path) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hash_tensors({"pixels": read_pictures(folder / f"x.{suffix}", 32, 3).pixels})

    return Kind(make, look, 50, sealed=False)


FILES = {
    "model folder": Kind(make_model, open_model, 90),
    "flow without a reverse model": Kind(lambda folder: save_model(tiny_model(reverse=False), folder), open_model, 20),
    ".pth of ml-tarflow": Kind(copy_pth, open_pth, 60),
    "latents": Kind(make_latents, open_cache, 40),
    "training checkpoint": Kind(make_state, open_state, 20),
    "reference classifier": Kind(
        lambda folder: save_judge(Judge(1, 3), folder), lambda folder: hash_tensors(load_judge(folder).state_dict()), 20
    ),
    "samples (.npz)": Kind(make_samples, open_samples, 30),
    "recipe": Kind(make_recipe, open_recipe, 20, sealed=False),
}
IMAGES = {
    f"{mode} {suffix}": image_kind(suffix, mode)
    for mode, suffix in (
        ("RGBA", "png"),
        ("L", "png"),
        ("RGB", "jpg"),
        ("RGB", "bmp"),
        ("RGB", "tiff"),
        ("RGB", "webp"),
    )
}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `Slow` if the block takes longer."""

    def stop(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome_of(kind: Kind, folder: Path, right: str, *, damaged: bool) -> tuple[str, str]:
    """What becomes of opening a folder, and the text of a fault."""
    try:
        with limited(SECONDS):
            same = kind.open(folder) == right
    except Slow:
        return "hang", ""
    except (InputError, checkpoints.Damaged) as error:
        text = str(error)
        if "MemoryError" in text:
            return "memory", text
        clear = printable(text) == text and len(text) <= LONGEST
        return "sentence" if clear else "unclear", text
    except Exception as error:  # what this program looks for
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        return "memory" if memory else "traceback", "".join(traceback.format_exception(error)[-3:])
    return ("accepted" if same or not (damaged and kind.sealed) else "accepted changed"), ""


def work(connection: Any, kind: Kind, original: Path, seeds: Sequence[str]) -> None:
    """Open one mutated folder after another, in a child process with bounded memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    right = kind.open(original)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(original, Path(folder) / "x")
            done, damaged = mutate(Path(folder) / "x", random.Random(seed))
            outcome, text = outcome_of(kind, Path(folder) / "x", right, damaged=damaged)
            connection.send((seed, outcome, done, text.replace(folder, "")))


def fuzz(kinds: dict[str, Kind], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Open every kind of file, mutated; a row of counts for each, and what was not a sentence."""
    rows = []
    for name, kind in kinds.items():
        original = folder / name.replace(" ", "_")
        kind.make(original)
        left, found = [f"{seed} {name} {i}" for i in range(kind.count)], []
        while left:
            results = list(listen(kind, original, left))
            found += results
            left = left[len(results) :]
        counts = Counter(outcome for _, outcome, _, _ in found)
        odd = [list(each) for each in found if each[1] not in {"sentence", "accepted"}]
        rows.append({"kind": name, "files": kind.count, **{each: counts[each] for each in OUTCOMES}, "odd": odd})
        print(f"{name}: {dict(counts)}", *odd, sep="\n  ", flush=True)
    return rows


def listen(kind: Kind, original: Path, seeds: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """The results of a child; if it dies or hangs, one that says so ends them."""
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(writer, kind, original, seeds))
    child.start()
    writer.close()
    for seed in seeds:
        try:
            if not reader.poll(2 * SECONDS):
                yield seed, "hang", "", "the process did not return"
                break
            yield reader.recv()
        except EOFError:
            child.join()
            yield seed, "memory" if child.exitcode == -signal.SIGKILL else "traceback", "", f"exit {child.exitcode}"
            break
    child.kill()
    child.join()


def main() -> None:
    """Open mutated files and add the table to the page of faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds whose name contains this; writes nothing")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {name: kind for name, kind in (FILES | IMAGES).items() if (arguments.only or "") in name}
    with tempfile.TemporaryDirectory() as folder:
        rows = fuzz(kinds, arguments.seed, Path(folder))
    if not arguments.only:
        kept = [{key: value for key, value in row.items() if key != "odd"} for row in rows]
        faults.add_to_page(arguments.out, {"fuzz": {"seed": arguments.seed, "rows": kept}})


if __name__ == "__main__":
    main()
