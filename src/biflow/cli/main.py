"""The command line: parse, call, print."""

import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.exceptions import TyperException

from biflow._version import __version__
from biflow.cli.app import app as page
from biflow.cli.arguments import (
    Device,
    GuidanceText,
    MethodText,
    ModelFolder,
    OutFolder,
    ReadingSettings,
    Recipe,
    Seed,
    Settings,
    open_pictures,
    open_pipeline,
)
from biflow.cli.data import data_app
from biflow.cli.doctor import doctor
from biflow.cli.edit import edit_app
from biflow.cli.evaluate import evaluate
from biflow.cli.export import export, playground
from biflow.cli.hub import push
from biflow.cli.process import escape_unencodable, keep_freed_memory, say_error, share_processors
from biflow.config import Average, ClassifyMethod, ClassifyNoise, ScoreNoise, load_recipe, recipe_head, recipe_names
from biflow.config.base import parse_config
from biflow.config.evaluation import SampleConfig
from biflow.console import console, counted, program, quote, say, say_once, table, tell
from biflow.errors import Diverged, InputError, Interrupted
from biflow.files import DISK_FULL

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transformer normalizing flows that sample in one pass.",
    epilog="Start with: biflow quickstart --out runs/quickstart",
)

START, MODELS, ELSE = "Start here", "With a trained model", "Data, planning and setup"  # panels of the help

MANY = 1000  # images, for which compiling on a GPU takes less time than it saves

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="A tiny run that shows that everything works.")]


@app.command(rich_help_panel=START)
def quickstart(out: OutFolder = Path("runs/quickstart"), smoke: Smoke = False, resume: Resume = False) -> None:
    """Train, sample and evaluate on handwritten digits, with a report."""
    from biflow.quickstart.run import make_plan, run_quickstart

    report = run_quickstart(out, make_plan(small=smoke), resume=resume, console=console)
    for summary in summary_tables(report):
        console.print(summary)
    tell(f"Open {out / 'report.html'}; sample more with: {program()} sample {quote(out / 'model')} --out grid.png")


@app.command(rich_help_panel=START)
def train(recipe: Recipe, out: OutFolder, set_: Settings = None, smoke: Smoke = False, resume: Resume = False) -> None:
    """Train a recipe; the model is written to OUT/model."""
    config = load_recipe(recipe, set_ or (), small=smoke)
    from biflow.data.datasets import ImageStream
    from biflow.data.open import check_apart, open_data
    from biflow.distributed import was_restarted
    from biflow.models.codec import make_codec
    from biflow.training.run import CONFIG_FILE, MODEL_FOLDER, keep_model, open_run
    from biflow.training.stages import train_model

    resume = resume or (was_restarted() and (out / CONFIG_FILE).exists())
    model = out / MODEL_FOLDER
    check_apart(config.data, out)
    codec = make_codec(config.model.codec)
    data = open_data(config.data, codec.image_shape(config.model), config.reading)
    held_out = None if isinstance(data.test, ImageStream) or not len(data.test) else data.test
    with open_run(config, data.train, out, resume=resume, console=console, held_out=held_out, codec=codec) as run:
        trained = train_model(run)
        run.world.on_main(lambda: keep_model(run, trained, model))
    if run.world.is_main:
        method = "" if trained.model.reverse else " --method sequential"
        tell(f"Saved {model}; sample with: {program()} sample {quote(model)}{method} --out grid.png")


IMAGES_HELP = "A folder of images, one image, or a .npz of samples."


@app.command(rich_help_panel=START)
def sample(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="A .npz file, a .png grid, or a folder for PNGs.")],
    num: Annotated[int, typer.Option(min=1, help="Number of images; classes take turns.")] = 64,
    label: Annotated[list[str] | None, typer.Option(help="Only these classes, in turn, by name or index.")] = None,
    guidance: GuidanceText = "0",
    method: MethodText = "reverse",
    seed: Seed = 0,
    device: Device = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="batch_size=64, redraw=true or compile=true.")] = None,
) -> None:
    """Sample images from a trained model.

    Settings follow after commas: --guidance 2.3,annealed --method gs-jacobi,tolerance=1e-4
    """
    config = parse_config(SampleConfig, {}, set_ or (), origin="the settings")
    import torch

    from biflow.data.images import check_image_output, write_images
    from biflow.sampling.guidance import parse_guidance
    from biflow.sampling.samplers import parse_sampler

    check_image_output(out)
    strength, sampler = parse_guidance(guidance), parse_sampler(method)
    pipe = open_pipeline(model, device)
    if config.compile or (config.compile is None and num >= MANY and pipe.device.type == "cuda"):
        pipe.compile(layers="reverse" in sampler.uses)
    classes = pipe.model.check_labels(label) if label else torch.arange(max(1, pipe.config.num_classes))
    labels = classes[torch.arange(num) % len(classes)]
    how: Any = {"guidance": strength, "method": sampler, "seed": seed, "batch_size": config.batch_size}
    write_images(out, pipe.sample_pixels(labels, redraw=config.redraw, **how), labels)
    tell(f"Wrote {counted(num, 'image')} to {out}.")


@app.command(rich_help_panel=MODELS)
def score(
    model: ModelFolder,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help=IMAGES_HELP)],
    label: Annotated[str | None, typer.Option(help="Score as images of this class; by default of no class.")] = None,
    contrast: Annotated[
        bool, typer.Option("--contrast", help="With --label: log-likelihood ratio of the label to no class.")
    ] = False,
    noise: Annotated[ScoreNoise, typer.Option(help="uniform: comparable bits; training: as in training.")] = "uniform",
    draws: Annotated[int, typer.Option(min=1, help="Noise draws per image.")] = 1,
    average: Annotated[Average, typer.Option(help="Over draws: mean, or the importance-weighted bound.")] = "mean",
    show: Annotated[int, typer.Option(min=0, help="Least likely images to list.")] = 20,
    out: Annotated[Path | None, typer.Option(help="A .csv file with all images.")] = None,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Rank images by likelihood, in nats and bits per dimension."""
    from biflow.files import check_file_output, write_csv
    from biflow.inference.likelihood import Ranked

    if out:
        check_file_output(out)
    if contrast and label is None:
        raise InputError("Expected a label to compare with no class; got none. Add --label.")
    pipe = open_pipeline(model, device)
    of = pipe.config.null_label if label is None else int(pipe.model.check_labels([label]))
    if contrast and of == pipe.config.null_label:
        raise InputError("Expected the label of a class to compare with no class; got that of no class.")
    pictures = open_pictures(pipe, images, set_)
    options: dict[str, Any] = {"noise": noise, "draws": draws, "average": average}
    scores = pipe.log_prob(pictures.pixels, [of] * len(pictures.names), **options)
    title = f"least likely of {counted(len(pictures.names), 'image')}"
    if contrast:
        scores = scores.minus(pipe.log_prob(pictures.pixels, **options))
        title = f"{counted(len(pictures.names), 'image')}, lowest log-likelihood ratio first"
    ranking = scores.rank(pictures.names)
    if odd := int((~scores.nats.isfinite()).sum()):
        say(f"Warning: {odd} of {counted(len(ranking), 'image')} with NaN or infinite likelihood; ranked first.")
    if show:
        rows = [[each.image, f"{each.nats:.2f}", f"{each.bits_per_dim:.4f}"] for each in ranking[:show]]
        console.print(table(title, [["image", "nats", "bits/dim"], *rows]))
    nats, bits = scores.nats.mean(), scores.bits_per_dim.mean()
    tell(f"Mean over {counted(len(ranking), 'image')}: {nats:.2f} nats, {bits:.4f} bits per dimension.")
    if out:
        write_csv(out, Ranked._fields, ranking)
        tell(f"Wrote {out}.")


@app.command(rich_help_panel=MODELS)
def classify(
    model: ModelFolder,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help=IMAGES_HELP)],
    top: Annotated[int, typer.Option(min=1, help="Most probable classes to list per image.")] = 1,
    method: Annotated[
        ClassifyMethod, typer.Option(help="One gradient, ten, or Bayes' rule: most accurate, one pass per class.")
    ] = "gradient",
    noise: Annotated[ClassifyNoise, typer.Option(help="Noise added to the images.")] = "training",
    draws: Annotated[int, typer.Option(min=1, help="Noise draws per image.")] = 1,
    show: Annotated[int, typer.Option(min=0, help="Images to list.")] = 20,
    out: Annotated[Path | None, typer.Option(help="A .csv file with all images.")] = None,
    device: Device = None,
    set_: ReadingSettings = None,
) -> None:
    """Classify images by the flow's likelihood."""
    from biflow.files import check_file_output, write_csv
    from biflow.inference.classify import Guess, best_guesses

    if out:
        check_file_output(out)
    pipe = open_pipeline(model, device)
    pictures = open_pictures(pipe, images, set_)
    found = pipe.classify(pictures.pixels, method=method, noise=noise, draws=draws)
    guesses = best_guesses(found, pictures.names, pipe.class_names, top=top)
    if shown := [guess for guess in guesses if guess.image in pictures.names[:show]]:
        rows = [[g.image if g.rank == 1 else "", g.name, f"{g.probability:.4f}"] for g in shown]
        title = f"{min(show, len(pictures.names))} of {counted(len(pictures.names), 'image')}"
        console.print(table(title, [["image", "class", "probability"], *rows]))
    if out:
        write_csv(out, Guess._fields, guesses)
        tell(f"Wrote {out}.")


app.command(rich_help_panel=MODELS)(evaluate)
app.add_typer(edit_app, name="edit", rich_help_panel=MODELS)
app.command(rich_help_panel=MODELS)(export)
app.command(rich_help_panel=MODELS)(playground)
app.command(rich_help_panel=MODELS)(push)
app.command(name="app", rich_help_panel=MODELS)(page)
app.command(rich_help_panel=ELSE)(doctor)


@app.command(rich_help_panel=ELSE)
def plan(
    recipe: Recipe,
    set_: Settings = None,
    devices: Annotated[int, typer.Option(help="Devices.")] = 8,
    device_memory: Annotated[float, typer.Option(help="Memory per device, in GiB.")] = 80.0,
    tflops: Annotated[float, typer.Option(help="Peak TFLOP/s per device.")] = 400.0,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
) -> None:
    """Estimate what training a recipe costs, without running it."""
    config = load_recipe(recipe, set_ or ())
    from biflow.plan.operations import stage_fits
    from biflow.plan.report import Machine, hour_rows, left_out, memory_rows, operation_rows, parameter_rows

    machine = Machine(devices, device_memory, tflops, utilisation)
    tables = {"parameters": parameter_rows(config), "operations per image": operation_rows(config)}
    for stage, fit in stage_fits(config).items():
        title = f"GiB per device, {stage}: {machine.share(fit.batch_size)} images on each of {devices}, {fit.precision}"
        tables[title] = memory_rows(config, stage, machine)
    assumed = f"assuming {utilisation:.0%} of {tflops:g} TFLOP/s per device"
    for title, rows in {**tables, f"hours on {devices} devices, {assumed}": hour_rows(config, machine)}.items():
        console.print(table(title, rows))
    if names := left_out(config):
        tell(f"Not counted: {', '.join(names)}.")


import_app = typer.Typer(no_args_is_help=True, help="Convert a published checkpoint to a model folder.")
app.add_typer(import_app, name="import", rich_help_panel=ELSE)


@import_app.command()
def tarflow(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ml-tarflow state dict.")],
    out: OutFolder,
    noise_std: Annotated[float, typer.Option(min=0, help="Training noise: the last number of the file's name.")],
    image_size: Annotated[int | None, typer.Option(min=1, help="Image size, if the tensors leave it open.")] = None,
    class_names: Annotated[str | None, typer.Option(help="Class names, separated by commas.")] = None,
    codec: Annotated[str | None, typer.Option(help="Autoencoder of a latent model: vae:NAME.")] = None,
) -> None:
    """Convert an ml-tarflow checkpoint, such as afhq_model_8_768_8_8_0.07.pth."""
    from biflow.checkpoint import save_model
    from biflow.files import check_new_folder
    from biflow.hub.tarflow import load_tarflow

    check_new_folder(out)
    names = class_names.split(",") if class_names is not None else None
    model = load_tarflow(file, noise_std=noise_std, image_size=image_size, class_names=names, codec=codec)
    save_model(model, out)
    config, flow = model.config, model.config.flow
    size, patch = config.image_size, config.patch_size
    tell(
        f"Saved {out}: {size}x{size} images of {counted(config.channels, 'channel')} in patches of {patch}x{patch}, "
        f"{config.num_classes or 'no'} classes, {flow.blocks} blocks of {flow.layers} layers, width {flow.width}. "
        f"Sample with: {program()} sample {quote(out)} --method gs-jacobi --out grid.png"
    )


app.add_typer(data_app, name="data", rich_help_panel=ELSE)


@app.command(rich_help_panel=ELSE)
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this recipe, every key explained.")
    ] = None,
    key: Annotated[str | None, typer.Option("--explain", metavar="KEY", help="Explain this key alone.")] = None,
) -> None:
    """List the recipes, or print one."""
    if name:
        from biflow.config.explain import annotated, explain

        config = load_recipe(name)
        text = explain(key, config) if key else f"{recipe_head(name)}\n{annotated(config)}".lstrip()
        console.out(text, highlight=False)
        return
    if key:
        raise InputError("Expected the recipe whose key is explained; got none. Run biflow recipes NAME --explain KEY.")
    listing = Table.grid(padding=(0, 2))
    for each in recipe_names():
        listing.add_row(each, recipe_head(each).splitlines()[0].removeprefix("# "))
    console.print(listing)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Transformer normalizing flows that sample in one pass."""
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


def summary_tables(report: dict[str, Any]) -> list[Table]:
    """The main numbers of a quickstart, for the terminal."""
    from biflow.quickstart.report import classification_rows, quality_rows, speed_rows

    total = f"{report['total_seconds'] / 60:.1f} minutes in total"
    classified = f"{report['data']['classified_images']:,} test images, classified by likelihood"
    return [
        table(f"{report['samples']['count']:,} samples per sampler", quality_rows(report)),
        table(classified, classification_rows(report)),
        table(f"time per image; {total}", speed_rows(report)),
    ]


INTERRUPTED = 130
RESUMABLE = ("quickstart", "train")


def main() -> None:
    """Entry point: bad input ends with one line and code 2, an interrupted command with 130.

    Training that was terminated (SIGTERM, as before a pre-emption) and has saved its state ends with 0, training that
    diverged with 1.
    """
    escape_unencodable()
    keep_freed_memory()
    share_processors()
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # such images are rejected, and named
    warnings.showwarning = lambda message, *_: say(f"Warning: {message}")
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        code = app(prog_name="biflow", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of a Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except InputError as error:
        say_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        say(f"Error: Expected room to write; got: {error.strerror}. Free some space, and run the command again.")
        sys.exit(2)
    except TyperException as error:
        if message := " ".join(error.format_message().split()):  # empty after the help that a bare `biflow` prints
            path: str = getattr(getattr(error, "ctx", None), "command_path", "biflow")
            end = "" if message.endswith((".", "?")) else "."
            say(f"Error: {message.replace('Value error, ', '')}{end} See {path.replace('biflow', program(), 1)} --help")
        sys.exit(2)
    except Interrupted as stop:
        say_once(f"Stopped: {stop}; {how_to_resume()}")
        sys.exit(0 if stop.terminated else INTERRUPTED)
    except Diverged as fault:
        say_once(f"Error: {fault}")
        sys.exit(1)
    except KeyboardInterrupt:
        pass
    except Exception:  # a Ctrl-C in the middle of an import may come out as any error
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    # Only a Ctrl-C comes here.
    say_once(f"Stopped.{after_interruption()}")
    sys.exit(INTERRUPTED)


def after_interruption() -> str:
    """How to continue after an interruption."""
    if sys.argv[1:2] and sys.argv[1] in RESUMABLE:
        return f" If training had begun: {how_to_resume()}"
    if sys.argv[1:3] == ["data", "encode"]:
        return " Encoded shards are kept; run the same command to continue."
    if sys.argv[1:2] == ["evaluate"]:
        return " Samples are kept; run the same command to continue."
    return ""


def how_to_resume() -> str:
    """The command that resumes this one."""
    command = [word for word in sys.argv[1:] if word != "--resume"]
    return f"resume with {program()} {shlex.join([*command, '--resume'])}"
