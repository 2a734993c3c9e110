"""Export one-pass sampling to a file that runs without this package: ONNX, or a program of torch.export.

Inputs: standard normal noise (B, T, D), labels (B,) and guidance strengths (B,).  Output: images (B, P, H, W) in
[-1, 1].  Each file is run and verified against the pipeline before it is written.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from biflow._version import __version__
from biflow.checkpoint import WEIGHTS_FILE
from biflow.config import ModelConfig
from biflow.data.randomness import normal_for
from biflow.errors import InputError, choose
from biflow.extras import EXTRAS, require
from biflow.files import check_file_output, replace_file
from biflow.hub.repository import find_model
from biflow.models.codec import Codec, VaeCodec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance
from biflow.sampling.samplers import OnePass
from biflow.tensors import file_checksum

Target = Literal["onnx", "torch"]
Precision = Literal["float32", "float16", "int8"]
SampleFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noise (B, T, D), label (B,), guidance (B,)) -> images (B, P, H, W)."""

SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "float16": 0.02, "int8": 0.25}  # of values in [-1, 1]
CHECKED_BATCHES = (1, 13)
OPSET = 20
INPUTS, OUTPUT = ("noise", "label", "guidance"), "image"
CARD = "biflow"  # metadata key in an ONNX file; with the suffix .json in a torch file
LEVELS = 127.5  # grey levels in a distance of 1
MOST_BYTES = 2_000_000_000  # of weights in one ONNX file; the rest of 2 GiB is for the graph
MOST_DECODED = 63  # images; from 64 on, diffusers' decoder takes another code path
LIMIT_GUIDANCE = 100.0  # beyond it, a file uses this
MOST_GUIDANCE = 4.0  # verified when guidance was not trained


class Check(NamedTuple):
    """Difference between an exported file and the pipeline, on images in [-1, 1]."""

    images: int
    largest: float
    mean: float
    tolerance: float

    @property
    def grey_levels(self) -> float:
        """The largest difference in 8-bit grey levels."""
        return self.largest * LEVELS


class Exported(NamedTuple):
    """The written file."""

    card: dict[str, Any]
    check: Check
    size: int  # bytes


class ExportedSampler(nn.Module):
    """The computation of an exported file: the reverse model from standard normal noise to images."""

    scale: Tensor

    def __init__(self, flow: ForwardFlow, reverse: ReverseModel, config: ModelConfig, codec: Codec | None) -> None:
        super().__init__()
        self.reverse, self.codec, self.config = reverse, codec, config
        self.register_buffer("scale", flow.scale_noise(torch.ones_like(flow.prior_variance)))

    def forward(self, noise: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        """Standard normal noise (B, T, D), label (B,) int64, guidance (B,) -> images (B, P, H, W) in [-1, 1].

        Without a codec, latents.  Labels of no class are taken as the null label, guidance is limited to 0 or more.
        """
        label, guidance = known_label(label, self.config.null_label), usable_guidance(guidance)
        patches = self.reverse(noise * self.scale, label, guidance).image
        latents = unpatchify(patches, self.config.patch_size, self.config.channels)
        return latents if self.codec is None else self.codec.to_images(latents).clamp(-1, 1)


def known_label(label: Tensor, null_label: int) -> Tensor:
    """The labels (B,), with the null label in place of those that are of no class.

    A file cannot raise, and the lookup would count a negative label from the end.

    >>> known_label(torch.tensor([-1, 0, 2, 3, 99]), null_label=3).tolist()
    [3, 0, 2, 3, 3]
    """
    return torch.where((label >= 0) & (label <= null_label), label, null_label)


def usable_guidance(guidance: Tensor) -> Tensor:
    """Guidance strengths (B,) from 0 to `LIMIT_GUIDANCE`: nearest to those given, 0 for NaN.

    >>> usable_guidance(torch.tensor([-1, 0.5, torch.inf, torch.nan])).tolist()
    [0.0, 0.5, 100.0, 0.0]
    """
    return torch.where(guidance > 0, guidance, 0.0).clamp(max=LIMIT_GUIDANCE)


def export_model(
    model: Path, out: Path, *, target: Target = "onnx", precision: Precision = "float32", codec: bool = False
) -> Exported:
    """Export a model folder's one-pass sampling to a file, verified against the pipeline.

    codec: include the decoder of a latent model.  Raises `InputError`, and writes nothing, if the images differ by more
    than `TOLERANCES[precision]`.
    """
    check_export(out, target, precision)
    pipe = Pipeline.from_pretrained(model)
    sampler = make_sampler(pipe, codec=codec)
    if target == "onnx":
        check_size(sampler)
    card = make_card(pipe, model, precision=precision, images=sampler.codec is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as temporary:
        with quiet():
            examples = torch.zeros(3, *sampler.scale.shape), torch.zeros(3, dtype=torch.long), torch.zeros(3)
            program = trace_batches(sampler, examples, most=most_at_once(sampler.codec))
            if target == "torch":
                with temporary.open("wb") as file:
                    torch.export.save(program, file, extra_files={f"{CARD}.json": json.dumps(card)})
            else:
                write_onnx(program, temporary, card, precision)
        run = (read_torch if target == "torch" else read_onnx)(temporary)
        check = verify(run, pipe, images=sampler.codec is not None, tolerance=TOLERANCES[precision])
        if not check.largest <= check.tolerance:
            raise InputError(
                f"Expected the exported file to give the model's images within {check.tolerance:g}; the largest "
                f"difference is {check.largest:.3g}, {check.grey_levels:.1f} grey levels. Use --precision float32."
            )
        size = temporary.stat().st_size
    return Exported(card, check, size)


def check_export(out: Path, target: Target, precision: Precision) -> None:
    """Raise unless this export can be written here with the installed packages."""
    suffix = choose(SUFFIXES, target, "target")
    choose(TOLERANCES, precision, "precision")
    if out.suffix != suffix:
        raise InputError(f"Expected an output ending in {suffix} for the target {target}; got {out}.")
    if target == "torch" and precision != "float32":
        raise InputError(f"Expected precision float32 for the target torch; got {precision}. Use --to onnx.")
    if out.exists():
        raise InputError(f"Expected a new file to write; {out} exists. Remove it, or choose another name.")
    check_file_output(out)
    if target == "onnx":
        check_installed()


def check_installed() -> None:
    """Raise unless the packages for ONNX are installed."""
    for module in EXTRAS["onnx"].modules:
        require(module)


def check_size(sampler: nn.Module) -> None:
    """Raise unless the weights fit into one ONNX file."""
    size = 4 * sum(tensor.numel() for tensor in sampler.state_dict().values())
    if size > MOST_BYTES:
        found, most = (f"{each / 1e9:.1f} GB" for each in (size, MOST_BYTES))
        raise InputError(f"Expected float32 weights of at most {most} for one ONNX file; got {found}. Use --to torch.")


def make_sampler(pipe: Pipeline, *, codec: bool = False) -> ExportedSampler:
    """The module that is exported; it returns images for pixel models and with the codec, else latents."""
    reverse = pipe.model.reverse
    if reverse is None:
        raise InputError(
            "Expected a model with a reverse model to export; this one has only a flow. "
            "Train one: biflow train RECIPE --set stage=reverse --set flow_from=FOLDER."
        )
    if reverse.config.denoising == "score":
        raise InputError(
            "Expected a reverse model with learned denoising; this one needs a gradient of the flow, which cannot be "
            "exported. Train with model.reverse.denoising=learned."
        )
    decoder = pipe.model.codec if codec or pipe.config.codec == "pixels" else None
    return ExportedSampler(pipe.model.flow, reverse, pipe.config, decoder).eval()


def make_card(pipe: Pipeline, folder: Path, *, precision: Precision, images: bool) -> dict[str, Any]:
    """The metadata of an exported file, as JSON."""
    config, most = pipe.config, trained_guidance(pipe.config)
    channels, size, _ = pipe.model.image_shape if images else (config.channels, config.image_size, 0)
    return {
        "biflow_version": __version__,
        "weights_sha256": file_checksum(find_model(folder) / WEIGHTS_FILE),
        "precision": precision,
        "output": "image" if images else "latents",
        "codec": config.codec,
        "class_names": list(pipe.class_names),
        "num_classes": config.num_classes,
        "null_label": config.null_label,
        "image_size": size,
        "channels": channels,
        "noise_shape": [config.num_patches, config.patch_dim],
        "max_batch": most_at_once(pipe.model.codec if images else None),
        "guidance": config.reverse.guidance if config.reverse and config.num_classes else "none",
        "max_guidance": most,
    }


def trained_guidance(config: ModelConfig) -> float | None:
    """The largest guidance strength that the reverse model was trained with; None if it was trained without."""
    reverse = config.reverse
    return reverse.max_guidance if reverse and reverse.guidance == "trained" else None


def trace_batches(
    module: nn.Module, examples: tuple[Tensor, ...], *, most: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a module with a dynamic batch size up to `most`; examples: inputs (B, ...)."""
    batch = torch.export.Dim("batch", max=most)
    program = torch.export.export(module, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def most_at_once(codec: Codec | None) -> int | None:
    """The largest batch that a traced graph is valid for; none for no limit."""
    return MOST_DECODED if isinstance(codec, VaeCodec) else None


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    card: dict[str, Any],
    precision: Precision,
    *,
    names: tuple[Sequence[str], Sequence[str]] = (INPUTS, (OUTPUT,)),
) -> None:
    """Write one ONNX file with its weights; names: of the inputs and outputs."""
    import onnx

    exported = torch.onnx.export(
        program, input_names=names[0], output_names=names[1], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert exported is not None
    model = {"float32": lambda model: model, "float16": to_float16, "int8": to_int8}[precision](exported.model_proto)
    for node in model.graph.node:
        del node.metadata_props[:]  # source locations, a third of a small file
    onnx.helper.set_model_props(model, {CARD: json.dumps(card)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def to_float16(model: Any) -> Any:
    """An ONNX model in float16; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort()  # the input casts are appended at the end
    return converted.model


def to_int8(model: Any) -> Any:
    """An ONNX model with dynamic int8 quantisation, per channel."""
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "int8.onnx"
        # 7 bits: products of 8 overflow silently on x86 processors without VNNI
        quantize_dynamic(model, quantised, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        return onnx.load(quantised)


def read_torch(path: Path) -> SampleFunction:
    """A function that runs a program of torch.export."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


def read_onnx(path: Path, *, threads: int = 1) -> SampleFunction:
    """A function that runs an ONNX file of a sampler on the CPU."""
    run = open_onnx(path, INPUTS, [OUTPUT], threads=threads)
    return lambda *inputs: run(*inputs)[0]


def open_onnx(
    path: Path, inputs: Sequence[str], outputs: Sequence[str], *, threads: int = 1
) -> Callable[..., list[Tensor]]:
    """A function that runs an ONNX file on the CPU, from the tensors of these inputs to those of these outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        feeds = {name: each.numpy() for name, each in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(np.asarray(each)) for each in session.run(list(outputs), feeds)]

    return run


def verify(run: SampleFunction, pipe: Pipeline, *, images: bool, tolerance: float) -> Check:
    """Compare an exported file with the pipeline: two batch sizes, all kinds of labels, all guidance strengths.

    Images are clamped to [-1, 1] first; latents are not.
    """
    differences = []
    for batch in CHECKED_BATCHES:
        for strength in checked_strengths(pipe):
            labels = checked_labels(batch, pipe.config.num_classes)
            noise = normal_for(range(batch), (pipe.config.num_patches, pipe.config.patch_dim), "export", batch)
            found = run(noise, labels, torch.full((batch,), strength, dtype=torch.float32))
            wanted = expected(pipe, noise, labels, strength, images=images)
            if found.shape != wanted.shape:
                raise InputError(f"Expected images {tuple(wanted.shape)}; the file gives {tuple(found.shape)}.")
            differences.append((found - wanted).abs())
    every = torch.cat(differences)
    return Check(len(every), float(every.max()), float(every.mean()), tolerance)


@torch.no_grad()
def expected(pipe: Pipeline, noise: Tensor, labels: Tensor, strength: float, *, images: bool) -> Tensor:
    """The pipeline's images before rounding: (B, P, H, W)."""
    z = pipe.model.flow.scale_noise(noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        latents = pipe.model.to_latents(OnePass()(pipe.model, z, labels, Guidance(strength)).x)
    return pipe.model.codec.to_images(latents).clamp(-1, 1) if images else latents


def checked_labels(batch: int, num_classes: int) -> Tensor:
    """Labels (batch,) spread from the first class to the null label.

    >>> checked_labels(4, 6).tolist()
    [0, 2, 4, 6]
    """
    return torch.linspace(0, num_classes, batch).round().long()


def checked_strengths(pipe: Pipeline) -> Sequence[float]:
    """Guidance strengths from none to the largest that was trained."""
    if not pipe.config.num_classes:
        return (0.0,)
    found = trained_guidance(pipe.config)
    most = MOST_GUIDANCE if found is None else found
    return (0.0, most / 3, most)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' notes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
