"""All GPU measurements in at most nine minutes; the JSON file is rewritten after every measurement.

    python benchmarks/gpu.py --out docs/results/speed/gpu.json
    python benchmarks/gpu.py --device cpu --out runs/gpu.json                   # a dry run at tiny sizes
    python benchmarks/gpu.py --tarflow ~/ml-tarflow                             # with ml-tarflow's training step
    python benchmarks/gpu.py --only cifar --cifar npz:data/cifar10              # real images; takes all nine minutes

Runs from a source tree or installed.  Each section has its own time limit, and a failure does not affect the others:

- machine      the hardware, and its throughput at large matrix products
- commands     every command that uses the device, on a model trained for a few steps
- training     images per second, share of the matmul throughput, and idle time of the device, at three shapes
- one pass     milliseconds per image of BiFlow-B/2: autocast, bfloat16 weights, CUDA graphs, compiled with CUDA graphs
- exact        guided sequential inverse and Jacobi, 6 blocks of 4 layers, T = 256: autocast, bfloat16, CUDA graphs
- tarflow      ml-tarflow's training step, if the folder of its transformer_flow.py is given
- tests        the tests marked `gpu`
- cifar        the recipe cifar10, then its samples compared with the exact inverse's; needs --cifar

Select sections with --only.  Weights and images are random except in the last section.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import matmul_rate, rated_rate, seconds  # noqa: E402
from PIL import Image  # noqa: E402

from biflow.cli import main as cli  # noqa: E402
from biflow.config import (  # noqa: E402
    FitConfig,
    FlowConfig,
    FlowFitConfig,
    ModelConfig,
    ReverseConfig,
    ReverseFitConfig,
    RunConfig,
    load_recipe,
)
from biflow.data.datasets import ImageSet  # noqa: E402
from biflow.distributed import World  # noqa: E402
from biflow.evaluation.cost import count_parameters  # noqa: E402
from biflow.files import write_text  # noqa: E402
from biflow.models.codec import PixelCodec  # noqa: E402
from biflow.models.model import Model, new_model  # noqa: E402
from biflow.pipeline import Pipeline  # noqa: E402
from biflow.plan.operations import training_step  # noqa: E402
from biflow.sampling.options import SamplingSettings  # noqa: E402
from biflow.sampling.samplers import SAMPLERS  # noqa: E402
from biflow.training.batches import on_device  # noqa: E402
from biflow.training.loop import Trainer  # noqa: E402
from biflow.training.objectives import FitFlow, FitReverse  # noqa: E402
from biflow.training.provenance import describe_machine  # noqa: E402
from biflow.training.reverse_loss import ReverseLoss  # noqa: E402
from biflow.training.stages import Run, training_batches  # noqa: E402

Numbers = dict[str, Any]
TOTAL = 540.0  # seconds
LIMITS = {  # seconds per section
    "machine": 30,
    "commands": 110,
    "training": 150,
    "one pass": 90,
    "exact": 70,
    "tarflow": 45,
    "tests": 60,
    "cifar": 540,
}


class OutOfTime(Exception):
    """A section has reached its time limit."""


@contextlib.contextmanager
def limited(limit: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after this many seconds."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Bench:
    """The device, sizes to match, and the results so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device: torch.device = arguments.device
        self.small = self.device.type == "cpu"
        self.tarflow_folder: Path | None = arguments.tarflow
        self.cifar: str | None = arguments.cifar
        self.out: Path = arguments.out
        self.found: Numbers = {}

    def keep(self, section: str, name: str, numbers: object) -> None:
        """Record numbers, print them, and rewrite the file."""
        self.found.setdefault(section, {})[name] = numbers
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.out, json.dumps(self.found, indent=1) + "\n")
        print(f"  {name}: {json.dumps(numbers)}", flush=True)

    def attempt(self, section: str, name: str, measure: Callable[[], object]) -> None:
        """Record a measurement or why it failed, then free the device's memory."""
        try:
            self.keep(section, name, measure())
        except OutOfTime:
            self.keep(section, name, "out of time")
            raise
        except Exception as error:
            self.keep(section, name, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def image_model(self, *, side: int, patch: int, classes: int, blocks: int, layers: int, width: int) -> ModelConfig:
        """A model of RGB images with a reverse model of the same width; tiny in a dry run."""
        if self.small:
            side, blocks, layers, width = 8, 2, 1, 16
        head = min(64, width // 2)
        flow = FlowConfig(blocks=blocks, layers=layers, width=width, head_width=head)
        reverse = ReverseConfig(layers=layers, width=width, head_width=head, guidance="trained")
        return ModelConfig(
            image_size=side,
            channels=3,
            patch_size=patch,
            num_classes=classes,
            noise_std=0.05,
            flow=flow,
            reverse=reverse,
        )


def measure_machine(bench: Bench) -> None:
    """The hardware, and its throughput at large matrix products."""
    kinds = [torch.float32] if bench.small else [torch.bfloat16, torch.float32]
    for key, value in describe_machine(bench.device).items():
        bench.keep("machine", key, value)
    for kind in kinds:
        bench.attempt("machine", f"matmul {kind}, TFLOP/s", lambda kind=kind: matmul_rate(bench.device, kind) / 1e12)
    bench.keep("machine", "rated TFLOP/s", (rated_rate(bench.device) or 0) / 1e12)


def run_commands(bench: Bench) -> None:
    """Every command that uses the device: exit code, seconds, and the last line of output if it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw = np.random.default_rng(0)
        for index in range(64):
            target = folder / "images" / "ab"[index % 2] / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(target)
        model, one, images = folder / "run" / "model", folder / "images" / "a" / "0.png", folder / "images"
        device = ["--device", bench.device.type]
        sample = ["sample", model, "--num", 4, "--out", folder / "x.png", *device]
        train = ["train", "biflow_digits", "--smoke", "--set", f"data=folder:{images}", "--set", "model.num_classes=2"]
        commands = {
            "train": [*train, "--out", folder / "run"],
            "train, muon, bfloat16, compiled": [
                *[*train, "--out", folder / "muon", "--set", "fit_flow.compile=true"],
                *["--set", "fit_flow.optimizer=muon", "--set", "fit_flow.precision=bfloat16"],
            ],
            **{f"sample {method}": [*sample, "--method", method] for method in SAMPLERS},
            "sample --compile": [*sample, "--compile"],
            "classify": ["classify", model, images / "a", *device],
            "score": ["score", model, images / "a", *device],
            "edit reclass": ["edit", "reclass", model, one, "--to", "b", "--out", folder / "x.png", *device],
            "edit vary": ["edit", "vary", model, one, "--label", "a", "--out", folder / "x.png", *device],
            "export": ["export", model, "--to", "torch", "--out", folder / "x.pt2"],
            "doctor": ["doctor"],
        }
        for name, words in commands.items():
            bench.attempt("commands", name, lambda words=words: run_command(words))


def run_command(words: list[object]) -> Numbers:
    """Run a command in this process: exit code, seconds, and the last line of output if it failed."""
    output, start = io.StringIO(), time.perf_counter()
    sys.argv = ["biflow", *map(str, words)]
    code: object = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    error = output.getvalue().strip().splitlines()[-1:] if code else []
    return {"code": code, "seconds": round(time.perf_counter() - start, 1), "error": error}


def measure_training(bench: Bench) -> None:
    """Images per second with batches prepared as in training, and the idle time of the device."""
    cifar = bench.image_model(side=32, patch=2, classes=10, blocks=6, layers=4, width=256)
    large = load_recipe("tarflow_imagenet64_p4").model.model_copy(update={"codec": "pixels"})
    large = bench.image_model(side=64, patch=4, classes=1000, blocks=8, layers=8, width=1024) if bench.small else large
    shapes = {
        "flow, 32x32, T = 256, 19 M": (cifar, "flow", 512),
        "reverse, 32x32, T = 256, 22 M": (cifar, "reverse", 512),
        "flow, 64x64, T = 256, 0.82 B": (large, "flow", 32),
    }
    for name, (config, stage, batch) in shapes.items():
        for compiled in (True, False):
            label = f"{name}, batch {batch}{', compiled' * compiled}"
            settings = {"batch_size": batch, "compiled": compiled}
            bench.attempt("training", label, lambda c=config, s=stage, o=settings: train(bench, c, s, **o))


def train(bench: Bench, model_config: ModelConfig, stage: str, *, batch_size: int, compiled: bool) -> Numbers:
    """Training throughput of one shape."""
    steps, warm = (2, 1) if bench.small else (16, 4)
    batch_size = 4 if bench.small else batch_size
    settings: Numbers = {"steps": warm + steps + 8, "batch_size": batch_size, "compile": compiled}
    settings["precision"] = "float32" if bench.small else "bfloat16"
    run_config = RunConfig(
        model=model_config, fit_flow=FlowFitConfig(**settings), fit_reverse=ReverseFitConfig(**settings)
    )
    side, classes = model_config.image_size, model_config.num_classes
    pixels = torch.randint(0, 256, (2048, 3, side, side), dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(2048) % classes, tuple(str(label) for label in range(classes)))
    world = World(0, 1, bench.device)
    run = Run(run_config, data, PixelCodec(), world, Path("unused"), lambda *_: [])
    model = new_model(model_config, data.class_names)
    fit: FitConfig = run_config.fit_flow
    objective: FitFlow | FitReverse = FitFlow(model.flow)
    if stage == "reverse":
        assert model.reverse
        assert run_config.fit_reverse
        model.flow.to(bench.device)
        loss = ReverseLoss(run_config.fit_reverse, run_config.model, codec=run.codec, image_shape=data.image_shape)
        objective, fit = FitReverse(model.reverse, model.flow, loss), run_config.fit_reverse
    trainer = Trainer(objective, fit, world)
    batches = on_device(training_batches(run, stage, objective, fit), range(fit.steps), bench.device)

    def step() -> None:
        trainer._take_step(next(batches))

    start = time.perf_counter()
    step()
    wait(bench.device)
    first = time.perf_counter() - start
    for _ in range(warm - 1):
        step()
    wait(bench.device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(bench.device)
    taken = (time.perf_counter() - start) / steps
    rate = training_step(run_config, stage).operations * batch_size / taken
    idle = idle_share(step, bench.device)
    batches.close()  # type: ignore[attr-defined]
    matmul = bench.found.get("machine", {}).get("matmul torch.bfloat16, TFLOP/s")
    return {
        "parameters": count_parameters(objective.model),
        "ms per step": 1e3 * taken,
        "images per second": batch_size / taken,
        "TFLOP/s": rate / 1e12,
        "share of matmul": rate / 1e12 / matmul if isinstance(matmul, float) else None,
        "idle share of the device": idle,
        "seconds of the first step": first,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else None,
    }


def idle_share(step: Callable[[], None], device: torch.device, steps: int = 4) -> float | None:
    """Share of the time of several steps in which no kernel runs, by the profiler; its overhead counts as idle."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        wait(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return 1 - busy / (end - spans[0][0])


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_model(config: ModelConfig) -> Model:
    """A model with random weights in which no block is the identity."""
    model = new_model(config, tuple(str(label) for label in range(config.num_classes)))
    for network in filter(None, (model.flow, model.reverse)):
        network.eval().requires_grad_(False)
        for name, parameter in network.named_parameters():
            if "project_out" in name:
                parameter.normal_(std=0.01)
    return model


def drawing(pipe: Pipeline, method: str, batch: int, guidance: float) -> Callable[[], object]:
    """A function that samples a batch of latents from fixed noise."""
    settings = SamplingSettings.of({"method": method, "guidance": guidance})
    z = torch.randn(batch, *pipe.config.noise_shape, device=pipe.device)
    labels = torch.arange(batch, device=pipe.device) % max(1, pipe.config.num_classes)
    return lambda: pipe.engine.latents(z, labels, settings)


def autocast(draw: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same call under bfloat16 autocast, with float32 weights."""

    def call() -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return draw()

    return call


def measure_one_pass(bench: Bench) -> None:
    """One-pass sampling with BiFlow-B/2, without the codec."""
    config = load_recipe("biflow_b2").model.model_copy(update={"codec": "pixels"})
    config = bench.image_model(side=8, patch=2, classes=10, blocks=2, layers=1, width=16) if bench.small else config
    for kind in ("autocast", "bfloat16 weights", "CUDA graphs", "compiled, CUDA graphs"):
        pipe = Pipeline(as_model(config)).to(bench.device)
        if kind == "bfloat16 weights":
            pipe.to(dtype=torch.bfloat16)
        elif kind != "autocast":
            pipe.compile(torch.bfloat16, layers="compiled" in kind)
        for batch in (1, 2) if bench.small else (1, 16, 128):
            draw = drawing(pipe, "reverse", batch, 1.0)
            draw = autocast(draw, bench.device) if kind == "autocast" else draw
            bench.attempt("one pass", f"{kind}, batch {batch}", lambda d=draw, b=batch: timed(bench, d, b))


def timed(bench: Bench, draw: Callable[[], object], batch: int) -> Numbers:
    """Milliseconds per image, and the seconds of the first call."""
    start = time.perf_counter()
    draw()
    wait(bench.device)
    first = time.perf_counter() - start
    times = [1e3 * seconds(draw, bench.device, 1) / batch for _ in range(2 if bench.small else 10)]
    return {"ms per image": min(times), "median": statistics.median(times), "seconds of the first call": first}


def measure_exact(bench: Bench) -> None:
    """The exact inverse with guidance and its score step, T = 256."""
    config = bench.image_model(side=32, patch=2, classes=10, blocks=6, layers=4, width=256)
    for kind in ("CUDA graphs", "CUDA graphs, float32", "bfloat16 weights", "autocast"):
        pipe = Pipeline(as_model(config)).to(bench.device)
        if kind != "autocast":
            pipe.to(dtype=torch.float32 if "float32" in kind else torch.bfloat16)
        if "graphs" in kind:
            pipe.compile(pipe.dtype)
        for method in ("sequential", "jacobi"):
            for batch in (1,) if "graphs" not in kind else (1, 16, 128):
                draw = drawing(pipe, method, batch, 1.0)
                draw = autocast(draw, bench.device) if kind == "autocast" else draw
                repeats = 1 if "graphs" not in kind else 2
                bench.attempt(
                    "exact",
                    f"{method}, {kind}, batch {batch}",
                    lambda d=draw, r=repeats: {"seconds": seconds(d, bench.device, r)},
                )


def measure_tarflow(bench: Bench) -> None:
    """ml-tarflow's training step at 0.82 B parameters; ours is in the training section."""
    if bench.tarflow_folder is None:
        bench.keep("tarflow", "not measured", "needs --tarflow")
        return
    sys.path.insert(0, str(bench.tarflow_folder))
    import transformer_flow as theirs

    size, patch, width, blocks, layers, batch = (8, 2, 64, 2, 1, 4) if bench.small else (64, 4, 1024, 8, 8, 32)
    kind = torch.float32 if bench.small else torch.bfloat16
    model = theirs.Model(
        in_channels=3, img_size=size, patch_size=patch, channels=width, num_blocks=blocks, layers_per_block=layers,
        num_classes=1000,
    ).to(bench.device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), lr=1e-4, weight_decay=1e-4)
    images = torch.randn(batch, 3, size, size, device=bench.device)
    labels = torch.zeros(batch, dtype=torch.long, device=bench.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, kind, enabled=not bench.small):
            z, _, log_dets = model(images, labels)
            loss = model.get_loss(z, log_dets)
        loss.backward()
        optimizer.step()

    bench.attempt("tarflow", f"training step, batch {batch}", lambda: {"ms": 1e3 * seconds(step, bench.device, 6)})


def run_tests(bench: Bench) -> None:
    """The tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", ROOT / "tests"]
    bench.attempt("tests", "pytest -m gpu", lambda: run_script(command))


def train_on_images(bench: Bench) -> None:
    """The recipe cifar10 through the command line, then `showcase.py`; the run is kept beside the results."""
    if bench.cifar is None:
        bench.keep("cifar", "not measured", "needs --cifar")
        return
    home = bench.out.parent
    train = [sys.executable, "-m", "biflow", "train", "cifar10", "--out", home / "cifar10"]
    train += ["--set", f"data={bench.cifar}"]
    show = [sys.executable, ROOT / "benchmarks" / "showcase.py", home / "cifar10", "--data", "cifar10"]
    show += ["--source", bench.cifar, "--device", bench.device.type, "--out", home, "--runs", home / "claims"]
    show += ["--samples", 2500]
    if bench.small:
        train += ["--set", "fit_flow.steps=2", "--set", "fit_reverse.steps=2", "--set", "fit_finish.steps=2"]
        show += ["--samples", 20, "--judge-steps", 2]
    for name, command in {"train": train, "showcase": show}.items():
        bench.attempt("cifar", name, lambda words=command: run_script(words))


def run_script(words: list[object]) -> Numbers:
    """A command in a process of its own: exit code, seconds, and the last lines of its output."""
    start, environment = time.perf_counter(), os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, check=False)
    spent = round(time.perf_counter() - start, 1)
    return {"code": done.returncode, "seconds": spent, "last": (done.stdout + done.stderr).strip().splitlines()[-12:]}


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "machine": measure_machine,
    "commands": run_commands,
    "training": measure_training,
    "one pass": measure_one_pass,
    "exact": measure_exact,
    "tarflow": measure_tarflow,
    "tests": run_tests,
    "cifar": train_on_images,
}


def main() -> None:
    """Run the sections, each within its own limit and the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed/gpu.json"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tarflow", type=Path, help="folder of ml-tarflow's transformer_flow.py")
    parser.add_argument("--cifar", help="CIFAR-10, as data= takes it: npz:data/cifar10")
    arguments = parser.parse_args()
    bench, begin = Bench(arguments), time.perf_counter()
    for name in arguments.only:
        spent = time.perf_counter() - begin
        limit = min(float(LIMITS[name]), TOTAL - spent)
        print(f"[{spent:4.0f} s] {name}, at most {max(limit, 0):.0f} s", flush=True)
        if limit < 1:
            bench.keep(name, "not measured", "out of time")
            continue
        try:
            with limited(limit):
                SECTIONS[name](bench)
        except OutOfTime:
            pass
        bench.keep(name, "seconds", round(time.perf_counter() - begin - spent, 1))
    print(f"[{time.perf_counter() - begin:4.0f} s] wrote {bench.out}", flush=True)


if __name__ == "__main__":
    main()
