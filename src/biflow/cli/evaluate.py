"""The command line's `evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from biflow.cli.arguments import GuidanceText, MethodText, Settings
from biflow.config.base import parse_config
from biflow.config.evaluation import EvaluationConfig
from biflow.console import console, table, tell
from biflow.errors import InputError

MOST_STRENGTHS = 1000


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a .npz of samples.")],
    data: Annotated[str, typer.Option(help="Real images: folder:PATH, npz:FILE, idx:FOLDER, hf:NAME or digits.")],
    out: Annotated[Path, typer.Option(help="Folder for samples, statistics and report; resumes what is in it.")],
    num: Annotated[int | None, typer.Option(help="Images; by default 50,000, or all of a .npz.")] = None,
    method: MethodText = "reverse",
    guidance: GuidanceText = "0",
    sweep: Annotated[
        str | None, typer.Option(help="Guidance strengths to try first: guidance=FIRST:LAST:STEP.")
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="inception (default), dinov2 (each also :PATH), efficientnet, or judge.")
    ] = None,
    set_: Settings = None,
) -> None:
    """Report FID and related metrics, likelihood and speed; resumes if interrupted.

    More settings by --set: seed, labels, split, references, npz, redraw, batch_size, sweep_num, reading.*. Under
    torchrun all processes share the sampling, and the images are the same for any number of them.
    """
    values: dict[str, Any] = {"data": data, "num": num, "method": method, "guidance": guidance}
    values |= {"sweep": parse_sweep(sweep) if sweep else [], "features": features or ["inception"]}
    config = parse_config(EvaluationConfig, values, set_ or (), origin="the settings")
    from biflow.evaluation.evaluate import REPORT_FILE
    from biflow.evaluation.evaluate import evaluate as run
    from biflow.evaluation.report import cost_rows, quality_rows, sweep_rows

    result = run(model, config, out, console)
    if result is None:  # the main process reports
        return
    tables = {"guidance sweep": sweep_rows(result), "quality": quality_rows(result), "cost": cost_rows(result)}
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
            f"Expected a sweep such as guidance=0:3:0.25, FIRST:LAST:STEP with a step above 0; got {text!r}."
        )
    if count > MOST_STRENGTHS:
        raise InputError(f"Expected at most {MOST_STRENGTHS} strengths; {text!r} has {count}. Use a larger step.")
    return [round(first + index * step, 9) for index in range(count)]
