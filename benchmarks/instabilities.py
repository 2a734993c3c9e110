"""Failure modes of a healthy model: the tables of docs/instabilities.md.

    python benchmarks/instabilities.py runs/mine/model

Too much guidance for the exact inverse, a tolerance that is too loose, and images in the wrong value range.  Prints
three tables; takes seconds.
"""

import argparse

import torch

from biflow import Guidance, Jacobi, Pipeline, Sequential
from biflow.data.datasets import load_data
from biflow.models.patches import patchify

IMAGES = 100
STRENGTHS = (0, 1, 4, 16, 64)
TOLERANCES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 0.0)


def guidance_rows(pipe: Pipeline) -> list[list[str]]:
    """The exact inverse at increasing guidance strengths, before the score step."""
    rows = [["w", "largest value", "saturated pixels (black or white)"]]
    labels = torch.arange(IMAGES) % pipe.config.num_classes
    for strength in STRENGTHS:
        drawn = Sequential(denoise=0)(pipe.model, pipe.noise(range(IMAGES), 0), labels, Guidance(float(strength)))
        pixels = pipe.model.codec.decode(pipe.model.to_latents(drawn.x))
        share = ((pixels == 0) | (pixels == 255)).double().mean()
        rows.append([f"{strength}", f"{drawn.x.abs().max():.3g}", f"{share:.0%}"])
    return rows


def tolerance_rows(pipe: Pipeline) -> list[list[str]]:
    """Jacobi at decreasing tolerances against the sequential inverse."""
    rows = [["tolerance", "network calls", "largest error"]]
    z, labels = pipe.noise(range(IMAGES), 0), torch.arange(IMAGES) % pipe.config.num_classes
    exact = Sequential(denoise=0)(pipe.model, z, labels, Guidance())
    for tolerance in TOLERANCES:
        drawn = Jacobi(tolerance=tolerance, denoise=0)(pipe.model, z, labels, Guidance())
        error = (drawn.x - exact.x).abs().max()
        rows.append([f"{tolerance:g}", f"{drawn.network_calls}", f"{error:.1g}"])
    return [*rows, ["sequential", f"{exact.network_calls}", ""]]


@torch.no_grad()
def range_rows(pipe: Pipeline) -> list[list[str]]:
    """The likelihood of test images whose value range differs from that of the codec."""
    rows = [["value range", "nats per dimension", "RMS of the noise"]]
    clean = pipe.model.codec.encode(load_data("digits").test.images[:IMAGES])
    labels = torch.full((IMAGES,), pipe.config.null_label)
    for name, images in {"-1 to 1": clean, "0 to 1": (clean + 1) / 2, "0 to 255": (clean + 1) * 127.5}.items():
        patches = patchify(images, pipe.config.patch_size)
        flow_pass = pipe.model.flow(patches, labels)
        nats = -pipe.model.flow.log_prob_of(flow_pass).mean() / patches[0].numel()
        rows.append([name, f"{nats:.4g}", f"{flow_pass.z.square().mean().sqrt():.3g}"])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder of the digits")
    pipe = Pipeline.from_pretrained(parser.parse_args().model)
    for rows in (guidance_rows(pipe), tolerance_rows(pipe), range_rows(pipe)):
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        print("\n".join([head, "|" + " --- |" * len(rows[0]), *body, ""]))


if __name__ == "__main__":
    main()
