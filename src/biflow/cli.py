"""The command line: parse, call, print."""

import shlex
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from biflow import __version__
from biflow.config import load_recipe, recipe_names, recipe_text
from biflow.errors import InputError, Interrupted
from biflow.memory import keep_freed_memory

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transformer normalizing flows that sample in one pass.",
    epilog="Start with: biflow quickstart --out runs/quickstart",
)
console = Console()

Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="A tiny size that shows everything works.")]


@app.command()
def quickstart(out: Out = Path("runs/quickstart"), smoke: Smoke = False, resume: Resume = False) -> None:
    """Train on handwritten digits, learn the inverse, sample both ways, write a report."""
    from biflow.quickstart import make_plan, run_quickstart

    report = run_quickstart(out, make_plan(small=smoke), resume=resume, console=console)
    for table in summary_tables(report):
        console.print(table)
    _tell(f"Open {out / 'report.html'}; sample more with: {program()} sample {out / 'model'} --out grid.png")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a YAML file.")],
    out: Out,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value.")] = None,
    smoke: Smoke = False,
    resume: Resume = False,
) -> None:
    """Train what a recipe describes; the model lands in OUT/model."""
    config = load_recipe(recipe, set_ or (), small=smoke)
    from biflow.checkpoint import save_model
    from biflow.data.datasets import load_data
    from biflow.training.run import MODEL_FOLDER, open_run
    from biflow.training.stages import train_model

    model = out / MODEL_FOLDER
    with open_run(config, load_data(config.data).train, out, resume=resume, console=console) as run:
        trained = train_model(run).model
        run.world.on_main(lambda: save_model(trained, model))
    if run.world.is_main:
        method = "" if trained.reverse else " --method sequential"
        _tell(f"Saved {model}; sample with: {program()} sample {model}{method} --out grid.png")


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    out: Annotated[Path, typer.Option(help="A .npz file, a .png grid, or a folder for PNGs.")],
    num: Annotated[int, typer.Option(min=1, help="Number of images; classes take turns.")] = 64,
    label: Annotated[
        list[int] | None, typer.Option(help="Only these classes, in turn; one above the last is no class.")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Strength of guidance; 0 is none.")] = 0.0,
    annealed: Annotated[bool, typer.Option("--annealed", help="Guidance grows over the patches (sequential).")] = False,
    method: Annotated[str, typer.Option(help="reverse (one pass) or sequential (exact).")] = "reverse",
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes speed and memory only.")] = 256,
) -> None:
    """Draw images from a trained model."""
    import torch

    from biflow.data.images import check_image_output, write_images
    from biflow.pipeline import Pipeline
    from biflow.sampling.guidance import Guidance

    check_image_output(out)
    pipe = Pipeline.from_pretrained(model)
    classes = pipe.check_labels(label) if label else torch.arange(max(1, pipe.config.num_classes))
    labels = classes[torch.arange(num) % len(classes)]
    strength = Guidance(guidance, annealed=annealed)
    pixels = pipe.sample_pixels(labels, guidance=strength, method=method, seed=seed, batch_size=batch_size)
    write_images(out, pixels, labels)
    _tell(f"Wrote {num} images to {out}.")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe whole.")] = None,
) -> None:
    """List the recipes, or print one."""
    if name:
        console.out(recipe_text(name), end="", highlight=False)
        return
    for each in recipe_names():
        first_line = recipe_text(each).splitlines()[0].removeprefix("# ")
        console.print(f"{each:<16} {first_line}", highlight=False)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Transformer normalizing flows that sample in one pass."""
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


def summary_tables(report: dict[str, Any]) -> list[Table]:
    """The numbers of a quickstart that matter most, for the terminal."""
    from biflow.evaluation.report import quality_rows, speed_rows

    total = f"{report['total_seconds'] / 60:.1f} minutes in all"
    titles = (f"{report['samples']['count']:,} samples each way", f"time per image; {total}")
    return [_table(title, rows) for title, rows in zip(titles, (quality_rows(report), speed_rows(report)), strict=True)]


def _table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


COMMANDS = [str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands]


def main() -> None:
    """Entry point: bad input ends with one line and code 2, an interrupted command with 130."""
    keep_freed_memory()
    warnings.showwarning = lambda message, *_: _say(f"Warning: {message}")
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        sys.exit(app(prog_name="biflow", standalone_mode=False))
    except InputError as error:
        _say(f"Error: {error}")
        sys.exit(2)
    except TyperException as error:
        if message := " ".join(error.format_message().split()):  # empty after the help that a bare `biflow` prints
            command = [word for word in sys.argv[1:2] if word in COMMANDS]
            _say(f"Error: {message.rstrip('.?')}; see {' '.join([program(), *command])} --help")
        sys.exit(2)
    except Interrupted as stop:
        _say(f"Stopped: {stop}; {how_to_resume()}")
        sys.exit(130)
    except KeyboardInterrupt:
        pass
    except Exception:  # a Ctrl-C in the middle of an import may come out as any error
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    # Only a Ctrl-C comes here.
    _say("Stopped." if sys.argv[1:2] == ["sample"] else f"Stopped. If training had begun: {how_to_resume()}")
    sys.exit(130)


def program() -> str:
    """How this program was called, so that what it proposes to type works."""
    return "biflow" if shutil.which("biflow") or not Path(sys.argv[0]).exists() else sys.argv[0]


def how_to_resume() -> str:
    """The command that continues this one."""
    command = [word for word in sys.argv[1:] if word != "--resume"]
    return f"continue with {shlex.join([program(), *command, '--resume'])}"


def _tell(message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def _say(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
