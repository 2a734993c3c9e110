"""The cost of sampling: time, network calls, operations, parameters."""

import time
from collections.abc import Callable, Mapping
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from biflow.config import ModelConfig
from biflow.evaluation.samples import make_labels
from biflow.pipeline import Pipeline
from biflow.plan.operations import sampling
from biflow.sampling.guidance import Guidance
from biflow.sampling.samplers import ExactInverse, Sampler

REPEATS = 7  # timed calls; the median is reported
GIGA = 1e9


def measure_cost(pipe: Pipeline, sampler: Sampler, guidance: Guidance, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds per image at every batch size, and the counts that do not depend on the machine.

    "networks": from noise to the codec's input; "with_codec": from noise to pixels; "whole_call": including sampling
    the noise and copying the pixels to the CPU, as in `Pipeline.sample_pixels`.
    """
    times = {str(size): _milliseconds(pipe, sampler, guidance, size) for size in batch_sizes}
    largest = times[str(max(batch_sizes))]
    drawn = sampler(pipe.model, pipe.noise([0], 0), torch.zeros(1, dtype=torch.long, device=pipe.device), guidance)
    operations = operations_of(sampler, guidance, pipe.config)
    return {
        "milliseconds_per_image_by_batch_size": times,
        "images_per_second": 1000 / largest["whole_call"],
        "network_calls": drawn.network_calls,
        "calls_one_after_another": drawn.rounds,
        "gflops_per_image": None if operations is None else operations / GIGA,
        "parameters": parameters_of(pipe, sampler),
    }


def operations_of(sampler: Sampler, guidance: Guidance, config: ModelConfig) -> float | None:
    """Floating-point operations of the networks per image, without the codec; None if they depend on the image."""
    counts, guided = sampling(config), ", guided" if guidance.strength else ""
    found = sum(counts[f"{name}{guided}"] for name in sampler.counted)
    if found and isinstance(sampler, ExactInverse) and sampler.denoise:
        found += counts["score step"]
    return found or None


def parameters_of(pipe: Pipeline, sampler: Sampler) -> int:
    """Parameters of the networks that a sampler evaluates, without the codec."""
    reverse = pipe.config.reverse
    after = {"flow"} if "reverse" in sampler.uses and reverse and reverse.denoising == "score" else set()
    return sum(count_parameters(pipe.model.networks[name]) for name in {*sampler.uses, *after})


@torch.no_grad()
def _milliseconds(pipe: Pipeline, sampler: Sampler, guidance: Guidance, batch_size: int) -> dict[str, float]:
    z = pipe.noise(range(batch_size), 0)
    labels = make_labels("balanced", batch_size, pipe.config.num_classes, seed=0).to(pipe.device)

    def latents() -> Tensor:
        return finished(pipe.model.to_latents(sampler(pipe.model, z, labels, guidance).x))

    calls = {
        "networks": lambda _: latents(),
        "with_codec": lambda _: finished(pipe.model.codec.decode(latents())),
        "whole_call": lambda _: pipe.sample_pixels(labels, guidance=guidance, method=sampler, batch_size=batch_size),
    }
    return milliseconds_per_image(calls, batch_size, REPEATS)


def finished(result: Tensor) -> Tensor:
    """The result, after waiting for the device to compute it."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


def milliseconds_per_image(
    samplers: Mapping[str, Callable[[int], object]], batch_size: int, repeats: int
) -> dict[str, float]:
    """Median time of each sampler, called with the batch size, divided by the batch size.

    The samplers take turns, so that a slowdown of the machine affects all of them.  Each turn starts with an untimed
    call, because the previous sampler has filled the processor's caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(repeats):
        for name, sampler in samplers.items():
            sampler(batch_size)
            start = time.perf_counter()
            sampler(batch_size)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median_high(times) / batch_size for name, times in seconds.items()}


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
