"""The command line's `export` and `playground`."""

from pathlib import Path
from typing import Annotated

import typer

from biflow.cli.arguments import ModelFolder
from biflow.console import console, counted, quote, table, tell


def export(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="A new file: .onnx, or .pt2 for torch.")],
    to: Annotated[str, typer.Option(help="onnx, or torch: a program of torch.export.")] = "onnx",
    precision: Annotated[str, typer.Option(help="float32; for onnx also float16 or int8.")] = "float32",
    codec: Annotated[bool, typer.Option("--codec", help="Include the decoder of a latent model.")] = False,
) -> None:
    """Export one-pass sampling to one file (ONNX or torch.export).

    Inputs: noise (B, T, D), standard normal; label (B,); guidance (B,). Output: image (B, P, H, W) in [-1, 1].
    """
    from biflow.export.onnx import export_model

    written = export_model(model, out, target=to, precision=precision, codec=codec)  # type: ignore[arg-type]
    check, card = written.check, written.card
    rows = {"largest difference": check.largest, "mean difference": check.mean, "allowed": check.tolerance}
    console.print(table(f"{counted(check.images, 'image')} against the model's", difference_rows(rows, card["output"])))
    noise = " x ".join(map(str, card["noise_shape"]))
    tell(f"Wrote {out}: {written.size / 1e6:.1f} MB, {precision}, noise of {noise}, output {card['output']}.")


def difference_rows(differences: dict[str, float], output: str) -> list[list[str]]:
    """Differences, of images also in grey levels."""
    if output != "image":
        return [["", "of the latents"], *([name, f"{value:.2g}"] for name, value in differences.items())]
    rows = [[name, f"{value:.2g}", f"{127.5 * value:.2g}"] for name, value in differences.items()]
    return [["", "of -1 to 1", "grey levels of 255"], *rows]


def playground(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="Folder for the page; an existing page is replaced.")],
    runtime: Annotated[
        Path | None, typer.Option(help="Folder with onnxruntime-web's files; by default npm downloads them once.")
    ] = None,
) -> None:
    """Write a static page that samples in the browser."""
    from biflow.export.playground import write_site

    written = write_site(model, out, runtime=runtime)
    tell(f"The page's images differ from the model's by at most {written.check.grey_levels:.2g} grey levels.")
    tell(f"Wrote {out}. Serve it with: python -m http.server 8000 --directory {quote(out)}")
