"""Reference statistics: a network's features of the real images, summarised in one file.

Metrics depend on how the statistics were computed, so the file records that, and is rejected where it differs.
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
from torch import Tensor

from biflow.data.datasets import ImageSource
from biflow.errors import InputError
from biflow.evaluation.metrics import Gaussian, Moments
from biflow.evaluation.samples import features_of, write_tensors
from biflow.features.metric_networks import FeatureNet

FORMAT_VERSION = 1
EXAMPLES = 10_000  # at most; features kept for the metrics that need more than a Gaussian, as many as in ADM's files


@dataclass(frozen=True)
class Reference:
    """Statistics of real images, and how they were computed."""

    pooled: Gaussian
    spatial: Gaussian | None
    examples: Tensor  # (M, F), pooled features of some of the images, evenly spread over them
    facts: Mapping[str, Any]


class PartialReference(NamedTuple):
    """Statistics of some of the images."""

    pooled: Moments
    spatial: Moments | None  # None for a network without spatial features
    indices: Tensor  # (M,), of the examples
    examples: Tensor  # (M, F)

    def merge(self, other: "PartialReference") -> "PartialReference":
        """The statistics of both together."""
        return PartialReference(
            self.pooled.merge(other.pooled),
            self.spatial and other.spatial and self.spatial.merge(other.spatial),
            torch.cat([self.indices, other.indices]),
            torch.cat([self.examples, other.examples]),
        )


def measure_part(
    net: FeatureNet, data: ImageSource, *, rank: int, size: int, batch_size: int, progress: Callable[[int], None]
) -> PartialReference | None:
    """Statistics of this process's share of the images, if any; progress(n) is called after every n images."""
    whole = None
    chosen = evenly_spaced(len(data), EXAMPLES)
    for indices in torch.arange(len(data)).split(batch_size)[rank::size]:
        pooled, spatial, _ = features_of(net, data.read(indices), batch_size=batch_size)
        kept = torch.isin(indices, chosen)
        moments = None if spatial is None else _moments(spatial)
        part = PartialReference(_moments(pooled), moments, indices[kept], pooled[kept])
        whole = whole.merge(part) if whole else part
        progress(len(indices))
    return whole


def measure_reference(net: FeatureNet, data: ImageSource, *, batch_size: int) -> Reference:
    """Statistics of all images, computed by this process alone."""
    part = measure_part(net, data, rank=0, size=1, batch_size=batch_size, progress=lambda _: None)
    return join_parts([part], {"network": net.name, "images": len(data)})


def join_parts(parts: Sequence[PartialReference | None], facts: Mapping[str, Any]) -> Reference:
    """Statistics of all images, from those of every process's share."""
    whole = reduce(PartialReference.merge, filter(None, parts))
    spatial = whole.spatial.gaussian() if whole.spatial else None
    return Reference(whole.pooled.gaussian(), spatial, whole.examples[whole.indices.argsort()], facts)


def _moments(features: Tensor) -> Moments:
    return Moments.empty(features.shape[1]).update(features)


def evenly_spaced(count: int, limit: int) -> Tensor:
    """At most `limit` evenly spaced indices from 0 to `count` - 1."""
    limit = min(count, limit)
    return torch.arange(limit) * count // limit


def save_reference(reference: Reference, path: Path) -> None:
    """Write statistics to a .safetensors file, with a checksum."""
    tensors = {"examples": reference.examples, "mean": reference.pooled.mean, "covariance": reference.pooled.covariance}
    if reference.spatial:
        tensors |= {"spatial_mean": reference.spatial.mean, "spatial_covariance": reference.spatial.covariance}
    facts = dict(reference.facts)
    content = {"format_version": FORMAT_VERSION, "sha256": _checksum(tensors, facts), **facts}
    write_tensors(path, tensors, {"reference": json.dumps(content)})


def load_reference(path: Path) -> Reference:
    """Read a file of `save_reference`; raise if its contents have changed."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["reference"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        sound = facts.pop("format_version") == FORMAT_VERSION and facts.pop("sha256") == _checksum(tensors, facts)
        count, mean, covariance = facts["images"], tensors["mean"], tensors["covariance"]
        pooled, spatial, examples = Gaussian(mean, covariance, count), None, tensors["examples"]
        if "spatial_mean" in tensors:
            spatial = Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], count)
    except Exception:  # other files raise a dozen types
        sound = False
    if not sound:
        raise InputError(f"Expected statistics in {path}; another format, or damaged. Delete it to compute them.")
    return Reference(pooled, spatial, examples, facts)


def load_adm_reference(path: Path, net: FeatureNet, image_shape: tuple[int, int, int], *, batch_size: int) -> Reference:
    """Read a reference file of the ADM evaluator, such as VIRTUAL_imagenet256_labeled.npz.

    mu, sigma and mu_s, sigma_s are statistics of the pooled and spatial Inception features of all images.  arr_0 holds
    some of the images, uint8 (N, H, W, 3); precision, recall and the kernel distance use only these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = {name: torch.from_numpy(file[name]).double() for name in ("mu", "sigma", "mu_s", "sigma_s")}
            pixels = torch.from_numpy(file["arr_0"])
    except Exception:  # other files raise a dozen types
        raise InputError(
            f"Expected mu, sigma, mu_s, sigma_s and arr_0 in {path}, as in the ADM evaluator's references; "
            "cannot read them. Give one of its files, or statistics that biflow wrote (.safetensors)."
        ) from None
    if net.name != "inception":
        raise InputError(f"Expected --features inception for {path}, which holds Inception statistics; got {net.name}.")
    found = (pixels.shape[3], *pixels.shape[1:3]) if pixels.ndim == 4 else tuple(pixels.shape)
    if found[1:] != image_shape[1:]:
        raise InputError(
            f"Expected statistics of {image_shape[1]}x{image_shape[2]} images, as the model's; those in {path} are of "
            f"{found[1]}x{found[2]}. Give the file for the model's image size."
        )
    examples = features_of(net, pixels.permute(0, 3, 1, 2).contiguous(), batch_size=batch_size).pooled
    facts: dict[str, Any] = {"network": net.name, "weights": net.identity(), "data": str(path)}
    facts |= {"images": None, "image_shape": list(found)}
    count = len(pixels)  # a lower bound: the files do not record the number of images
    pooled, spatial = (Gaussian(numbers[f"mu{kind}"], numbers[f"sigma{kind}"], count) for kind in ("", "_s"))
    return Reference(pooled, spatial, examples, facts)


def describe_difference(reference: Reference, wanted: Mapping[str, Any]) -> str:
    """The first of these facts with which the statistics were not computed, in words; empty if there is none."""
    for key, value in wanted.items():
        found = reference.facts.get(key)
        if found != value:
            return f"{key} = {_short(value)}; those that are there were made with {_short(found)}"
    return ""


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
