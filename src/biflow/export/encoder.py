"""Export the flow to an ONNX file: images and labels -> noise and log-likelihood.

The playground classifies a drawing by evaluating every label, and edits it by decoding its noise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import ModelConfig
from biflow.data.augment import add_noise
from biflow.errors import InputError
from biflow.export.onnx import (
    CHECKED_BATCHES,
    check_size,
    checked_labels,
    known_label,
    open_onnx,
    quiet,
    trace_batches,
    write_onnx,
)
from biflow.models.codec import training_noise
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline

INPUTS, OUTPUTS = ("image", "label"), ("noise", "log_prob")
MOST_SIZE = 64  # pixels per side, for drawing
MOST_CLASSES = 100  # evaluated at once in a browser
TOLERANCE = 1e-4  # of values of size 1 or more, relative to their size


class EncoderOutput(NamedTuple):
    """The outputs of the file."""

    noise: Tensor  # (B, T, D), standard normal
    log_prob: Tensor  # (B,), nats


EncodeFunction = Callable[[Tensor, Tensor], EncoderOutput]
"""(image (B, P, H, W) with the training noise, label (B,)) -> `EncoderOutput`."""


class ExportedEncoder(nn.Module):
    """The computation of the file: the flow from images to standard normal noise."""

    scale: Tensor

    def __init__(self, flow: ForwardFlow) -> None:
        super().__init__()
        self.flow = flow
        self.register_buffer("scale", flow.scale_noise(torch.ones_like(flow.prior_variance)))

    def forward(self, image: Tensor, label: Tensor) -> EncoderOutput:
        """Images (B, P, H, W), [-1, 1] plus the training noise, label (B,) int64 -> `EncoderOutput`."""
        label = known_label(label, self.flow.config.null_label)
        found = self.flow(patchify(image, self.flow.config.patch_size), label)
        return EncoderOutput(found.z / self.scale, self.flow.log_prob_of(found))


def can_draw(config: ModelConfig) -> bool:
    """Whether the playground can draw for a model: small pixel images, grey or RGB, of two or more classes."""
    small = config.image_size <= MOST_SIZE and 2 <= config.num_classes <= MOST_CLASSES
    return small and config.codec == "pixels" and config.channels in (1, 3)


def export_encoder(pipe: Pipeline, out: Path, card: dict[str, Any]) -> float:
    """Export the encoder with this metadata; returns its largest relative difference from the flow.

    Raises `InputError` where that is above `TOLERANCE`.
    """
    encoder, config = ExportedEncoder(pipe.model.flow).eval(), pipe.config
    check_size(encoder)
    shape = (config.channels, config.image_size, config.image_size)
    with quiet():
        program = trace_batches(encoder, (torch.zeros(3, *shape), torch.zeros(3, dtype=torch.long)))
        write_onnx(program, out, card, "float32", names=(INPUTS, OUTPUTS))
    largest = verify_encoder(read_encoder(out), pipe)
    if not largest <= TOLERANCE:
        raise InputError(
            f"Expected the encoder's file to give the flow's noise and likelihood within {TOLERANCE:g}; the largest "
            f"difference is {largest:.3g}. Check that the installed versions of torch and onnxruntime agree."
        )
    return largest


def read_encoder(path: Path) -> EncodeFunction:
    """A function that runs an exported encoder on the CPU."""
    run = open_onnx(path, INPUTS, OUTPUTS)
    return lambda image, label: EncoderOutput(*run(image, label))


@torch.no_grad()
def verify_encoder(run: EncodeFunction, pipe: Pipeline) -> float:
    """The largest difference from the flow on noisy samples of all kinds of labels, relative for values above 1."""
    largest = []
    std, bin_width = training_noise(pipe.config)
    for batch in CHECKED_BATCHES:
        labels = checked_labels(batch, pipe.config.num_classes)
        clean = pipe.model.codec.encode(pipe.sample_pixels(labels, seed=batch))
        noisy = add_noise(clean, range(batch), std, "export", batch, bin_width=bin_width)
        found, wanted = run(noisy, labels), ExportedEncoder(pipe.model.flow)(noisy, labels)
        largest += [relative_difference(*pair) for pair in zip(found, wanted, strict=True)]
    return float(torch.stack(largest).max())


def relative_difference(found: Tensor, wanted: Tensor) -> Tensor:
    """The largest difference of two tensors, relative to `wanted` where that is above 1: scalar.

    >>> relative_difference(torch.tensor([0.5, 101.0]), torch.tensor([0.0, 100.0]))
    tensor(0.5000)
    """
    return ((found - wanted).abs() / wanted.abs().clamp(min=1)).max()
