r"""Add your own sampler and your own image distance, without changing biflow.

    python examples/own_loss_or_sampler.py runs/mine/model own.png

`BestOf` samples several candidates per image and keeps the one with the smallest cycle error, as measured by
`pipe.certify`.  It subclasses `biflow.sampling.samplers.Sampler`; pass it as
`method=`.

`Edges` is a network for `fit_reverse.distances` that compares differences between neighbouring pixels.  To train with
it, put this folder on PYTHONPATH:

    biflow train biflow_digits --out runs/edges \
        --set 'fit_reverse.distances=[{kind: mse}, {kind: module, network: "own_loss_or_sampler:Edges"}]'
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from biflow import Guidance, OnePass, Pipeline
from biflow.data.images import write_images
from biflow.models.model import Model
from biflow.sampling.result import SamplerOutput
from biflow.sampling.samplers import Sampler

ONE_PASS = OnePass()


@dataclass(frozen=True)
class BestOf(Sampler):
    """Sample from several noises derived from the given one, and keep the sample with the smallest cycle error.

    draws: number of candidates, including the one from the given noise.  sampler: the sampler of each candidate.
    """

    title = "best of several"
    uses = ("flow", "reverse")
    draws: int = 4
    sampler: Sampler = ONE_PASS

    def prepare(self, model: Model, guidance: Guidance) -> Sampler:
        """Prepare the inner sampler, once for a model and a guidance strength."""
        return BestOf(self.draws, self.sampler.prepare(model, guidance))

    def __call__(self, model: Model, z: Tensor, labels: Tensor, guidance: Guidance) -> SamplerOutput:
        """Noise z (B, T, D) and labels (B,) -> patches of clean images (B, T, D)."""
        best, least, calls = z, torch.full_like(z[:, 0, 0], torch.inf), 0
        for k in range(self.draws):
            noise = z * signs(k, z)
            drawn = self.sampler(model, noise, labels, guidance)
            missed = (model.flow(drawn.x, labels).z.detach() - noise).square().mean(dim=(1, 2))  # (B,)
            best = torch.where((missed < least)[:, None, None], drawn.x, best)
            least = torch.minimum(least, missed)
            calls += drawn.network_calls + len(model.flow.blocks)
        return SamplerOutput(best, network_calls=calls, rounds=calls)


def signs(k: int, like: Tensor) -> Tensor:
    """Random signs (T, D), all 1 for k = 0: flipping signs keeps the noise standard normal, and ignores the batch."""
    if not k:
        return torch.ones_like(like[0])
    pattern = torch.randint(2, like.shape[1:], generator=torch.Generator().manual_seed(k)) * 2 - 1
    return pattern.to(like)


class Edges(nn.Module):
    """Differences between neighbouring pixels, along rows and columns: images (B, P, H, W) -> two feature maps."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return two tensors with the batch dimension first; the distance is the mean over both."""
        return [images.diff(dim=3), images.diff(dim=2)]


def main(arguments: list[str] | None = None) -> None:
    """Sample one image per class with `BestOf`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder with a reverse model")
    parser.add_argument("out", type=Path, help="a .png")
    options = parser.parse_args(arguments)
    pipe = Pipeline.from_pretrained(options.model)
    labels = torch.arange(max(1, pipe.config.num_classes))
    write_images(options.out, pipe.sample_pixels(labels, method=BestOf(draws=4), guidance=0.25), labels)


if __name__ == "__main__":
    main()
