"""The command line's `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from biflow.cli.arguments import BatchSize, GuidanceText, MethodText, Seed
from biflow.config import LabelSchedule, ReadingConfig, SplitName
from biflow.config.base import Config, parse_config, to_yaml
from biflow.console import console, table, tell
from biflow.errors import InputError

MOST_STRENGTHS = 1000
MOST_IMAGES = 10_000_000


class Overrides(Config):
    """What --set can change."""

    reading: ReadingConfig = ReadingConfig()


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a .npz of samples.")],
    data: Annotated[str, typer.Option(help="Real images: folder:PATH, hf:NAME or digits.")],
    out: Annotated[Path, typer.Option(help="Folder for images, statistics and the report; a stopped command goes on.")],
    num: Annotated[int | None, typer.Option(min=4, max=MOST_IMAGES, help="Images: 50,000, or all of a .npz.")] = None,
    method: MethodText = "reverse",
    guidance: GuidanceText = "0",
    sweep: Annotated[str | None, typer.Option(help="Strengths to try first: guidance=FIRST:LAST:STEP.")] = None,
    sweep_num: Annotated[int, typer.Option(min=4, max=MOST_IMAGES, help="Images for each of them.")] = 10_000,
    features: Annotated[
        list[str] | None, typer.Option(help="inception, dinov2 (each also :PATH), or judge; inception unless told.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Statistics: .safetensors to make or use, or ADM's .npz.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Real images to compare with.")] = "train",
    labels: Annotated[LabelSchedule, typer.Option(help="Classes in turn, or drawn.")] = "balanced",
    seed: Seed = 0,
    redraw: Annotated[bool, typer.Option("--redraw", help="Draw again what is not finite, and count it.")] = False,
    batch_size: BatchSize = 256,
    npz: Annotated[Path | None, typer.Option(help="A .npz for the samples, as the ADM evaluator reads it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="How to read: reading.test_share=0.1.")] = None,
) -> None:
    """FID and its kin, likelihood, time: a JSON and a page.

    torchrun shares the drawing among its processes; the images are the same for any number of them.
    """
    strengths = parse_sweep(sweep) if sweep else []
    reading = parse_config(Overrides, to_yaml(Overrides()), set_ or (), origin="the settings").reading
    from biflow.evaluation.evaluate import REPORT_FILE, Request
    from biflow.evaluation.evaluate import evaluate as run
    from biflow.evaluation.report import cost_rows, quality_rows, sweep_rows

    request = Request(
        model,
        data,
        num,
        method=method,
        guidance=guidance,
        features=features or ("inception",),
        references=reference or (),
        split=split,
        labels=labels,
        seed=seed,
        redraw=redraw,
        batch_size=batch_size,
        reading=reading,
        sweep=strengths,
        sweep_num=sweep_num,
        npz=npz,
    )
    result = run(request, out, console)
    if result is None:  # the main process speaks
        return
    tables = {"guidance tried": sweep_rows(result), "quality": quality_rows(result), "cost": cost_rows(result)}
    for title, rows in tables.items():
        if len(rows) > 1:
            console.print(table(title, rows))
    tell(f"Wrote {out / REPORT_FILE}.")


def parse_sweep(text: str) -> list[float]:
    """The strengths of `guidance=FIRST:LAST:STEP`, both ends included.

    >>> parse_sweep("guidance=0:1:0.25")
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    key, _, span = text.partition("=")
    try:
        first, last, step = (float(part) for part in span.split(":"))
        count = int((last - first) / step + 1e-9) + 1
    except (ValueError, ZeroDivisionError, OverflowError):
        key, count, first, step = "", 0, 0.0, 0.0
    if key != "guidance" or count < 1 or first < 0 or step <= 0:
        raise InputError(
            f"Expected a sweep such as guidance=0:3:0.25, from the first (0 or more) up to the last by steps above 0; "
            f"got {text!r}."
        )
    if count > MOST_STRENGTHS:
        raise InputError(f"Expected at most {MOST_STRENGTHS} strengths; {text!r} are {count}. Take larger steps.")
    return [round(first + place * step, 9) for place in range(count)]
