"""What a set of real images is to a network: the statistics that samples are compared with, kept in one file.

Statistics made another way give another number, so the file says how it was made, and is refused where that differs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from biflow.data.datasets import ImageSource
from biflow.errors import InputError
from biflow.evaluation.metrics import Gaussian, Moments
from biflow.evaluation.samples import features_of
from biflow.features.metric_networks import FeatureNet
from biflow.files import replace_file

FORMAT_VERSION = 1
EXAMPLES = 10_000  # at most, whose features are kept for the measures that need more than a Gaussian (as ADM's files)
FACTS = (  # what must be the same for two numbers to be compared
    *("network", "weights", "preprocessing"),
    *("data", "split", "images", "image_shape", "crop", "background", "test_share"),
)


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, and how they were made."""

    pooled: Gaussian
    spatial: Gaussian | None
    examples: Tensor  # (M, F), pooled features of some of the images, evenly spread over them
    facts: Mapping[str, Any]


class Part(NamedTuple):
    """What one process has seen of the images."""

    pooled: Moments | None  # none of no images
    spatial: Moments | None  # nor of a network without such features
    places: Tensor  # (M,) of the examples
    examples: Tensor  # (M, F)

    def merge(self, other: "Part") -> "Part":
        """What both have seen."""
        return Part(
            _merge(self.pooled, other.pooled),
            _merge(self.spatial, other.spatial),
            torch.cat([self.places, other.places]),
            torch.cat([part.examples for part in (self, other) if len(part.places)] or [self.examples]),
        )


def measure_part(
    net: FeatureNet, data: ImageSource, *, rank: int, size: int, batch_size: int, progress: Callable[[int], None]
) -> Part:
    """Look once at this process's share of the images; progress(n) is told of every n images done."""
    part = Part(None, None, torch.empty(0).long(), torch.empty(0))
    chosen = spread_places(len(data), EXAMPLES)
    for places in torch.arange(len(data)).split(batch_size)[rank::size]:
        features = features_of(net, data.read(places), batch_size=batch_size)
        here = torch.isin(places, chosen)
        seen = Part(_moments(features.pooled), _moments(features.spatial), places[here], features.pooled[here])
        part = part.merge(seen)
        progress(len(places))
    return part


def measure_reference(net: FeatureNet, data: ImageSource, *, batch_size: int) -> Reference:
    """The statistics of all images, by this process alone."""
    part = measure_part(net, data, rank=0, size=1, batch_size=batch_size, progress=lambda _: None)
    return join_parts([part], {"network": net.name, "images": len(data)})


def join_parts(parts: Sequence[Part], facts: Mapping[str, Any]) -> Reference:
    """The statistics of all images, from what the processes have seen of them."""
    whole = reduce(Part.merge, parts)
    assert whole.pooled
    spatial = whole.spatial.gaussian() if whole.spatial else None
    return Reference(whole.pooled.gaussian(), spatial, whole.examples[whole.places.argsort()], facts)


def _moments(features: Tensor | None) -> Moments | None:
    return None if features is None else Moments.none(features.shape[1]).update(features)


def _merge(one: Moments | None, other: Moments | None) -> Moments | None:
    return one.merge(other) if one and other else one or other


def spread_places(count: int, limit: int) -> Tensor:
    """At most `limit` of so many places, evenly spread."""
    limit = min(count, limit)
    return torch.arange(limit) * count // limit


def save_reference(reference: Reference, path: Path) -> None:
    """Write statistics into a .safetensors file that carries its own checksum."""
    tensors = {"examples": reference.examples, "mean": reference.pooled.mean, "covariance": reference.pooled.covariance}
    if reference.spatial:
        tensors |= {"spatial_mean": reference.spatial.mean, "spatial_covariance": reference.spatial.covariance}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    facts = dict(reference.facts)
    content = {"format_version": FORMAT_VERSION, "sha256": _checksum(tensors, facts), **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={"reference": json.dumps(content)})


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote; raise if a number of it has changed."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["reference"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        sound = facts.pop("format_version") == FORMAT_VERSION and facts.pop("sha256") == _checksum(tensors, facts)
    except Exception:  # what is no such file shows itself as any of a dozen types
        sound = False
    if not sound:
        raise InputError(
            f"Expected statistics of real images in {path}; it is no such file, or has changed. "
            "Remove it, and they are made anew."
        )
    count = facts["images"]
    spatial = (
        Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], count) if "spatial_mean" in tensors else None
    )
    return Reference(Gaussian(tensors["mean"], tensors["covariance"], count), spatial, tensors["examples"], facts)


def load_adm_reference(path: Path, net: FeatureNet, image_shape: tuple[int, int, int], *, batch_size: int) -> Reference:
    """A reference file of the ADM evaluator, such as VIRTUAL_imagenet256_labeled.npz: its statistics, and its images.

    mu, sigma and mu_s, sigma_s are of pooled and spatial Inception features of all its images; arr_0 are some of
    them, uint8 (N, H, W, 3), which only precision, recall and the kernel distance are measured with.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = {name: torch.from_numpy(file[name]).double() for name in ("mu", "sigma", "mu_s", "sigma_s")}
            pixels = torch.from_numpy(file["arr_0"])
    except Exception:  # what is no such file shows itself as any of a dozen types
        raise InputError(
            f"Expected mu, sigma, mu_s, sigma_s and arr_0 in {path}, as in the ADM evaluator's references; "
            "cannot read them. Give one of its files, or statistics of our own (.safetensors)."
        ) from None
    if net.name != "inception":
        raise InputError(
            f"Expected --features inception for {path}, whose statistics are of that network; got {net.name}."
        )
    found = (pixels.shape[3], *pixels.shape[1:3]) if pixels.ndim == 4 else tuple(pixels.shape)
    if found[1:] != image_shape[1:]:
        raise InputError(
            f"Expected statistics of {image_shape[1]}x{image_shape[2]} images, as the model's; those of {path} are of "
            f"{found[1]}x{found[2]}. Give the file of the model's size."
        )
    examples = features_of(net, pixels.permute(0, 3, 1, 2).contiguous(), batch_size=batch_size).pooled
    facts = {
        "network": net.name,
        "weights": net.identity(),
        "data": str(path),
        "images": None,
        "image_shape": list(found),
    }
    count = len(pixels)  # at least: the files do not say of how many images they are
    return Reference(
        Gaussian(numbers["mu"], numbers["sigma"], count),
        Gaussian(numbers["mu_s"], numbers["sigma_s"], count),
        examples,
        facts,
    )


def check_facts(reference: Reference, wanted: Mapping[str, Any], path: Path) -> None:
    """Raise unless statistics were made as these facts say."""
    for key in FACTS:
        found = reference.facts.get(key)
        if found != wanted[key]:
            raise InputError(
                f"Expected statistics with {key} = {_short(wanted[key])}; those in {path} were made with "
                f"{_short(found)}. Set other references, or remove the file to have them made anew."
            )


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
