"""What drawing an image takes: time, evaluations of networks, operations, parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from biflow.config import ModelConfig
from biflow.evaluation.measures import count_parameters, milliseconds_per_image
from biflow.pipeline import Pipeline
from biflow.plan.operations import sampling
from biflow.samplers import OnePass, Refine, Sampler, Sequential
from biflow.sampling.guidance import Guidance

REPEATS = 7  # calls, of which the median counts
GIGA = 1e9


def measure_cost(pipe: Pipeline, sampler: Sampler, guidance: Guidance, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds an image at every batch size, and what does not depend on the machine.

    "networks": from noise to what the codec decodes; "with_codec": and on to pixels; "whole_call": with drawing the
    noise and copying the pixels to the CPU, as `Pipeline.sample_pixels` does.
    """
    times = {str(size): _milliseconds(pipe, sampler, guidance, size) for size in batch_sizes}
    largest = times[str(max(batch_sizes))]
    z, labels = pipe.noise([0], 0), _labels(pipe, 1)
    drawn = sampler(pipe.model, z, labels, guidance)
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
    """Floating-point operations of the networks for an image, without the codec; none if they depend on the image."""
    counts, guided = sampling(config), ", guided" if guidance.strength else ""
    if isinstance(sampler, OnePass):
        return counts[f"one pass{guided}"]
    if isinstance(sampler, Sequential):
        return counts[f"exact inverse{guided}"] + (counts["score step after either"] if sampler.denoise else 0.0)
    return None


def parameters_of(pipe: Pipeline, sampler: Sampler) -> int:
    """Of the networks that a sampler evaluates, without the codec."""
    flow, reverse = pipe.model.flow, pipe.model.reverse
    used: list[torch.nn.Module] = [flow] if not isinstance(sampler, OnePass) else []
    if reverse and isinstance(sampler, OnePass | Refine):
        used.append(reverse)
        if isinstance(sampler, OnePass) and reverse.config.denoising == "score":
            used.append(flow)
    return sum(map(count_parameters, used))


@torch.no_grad()
def _milliseconds(pipe: Pipeline, sampler: Sampler, guidance: Guidance, batch_size: int) -> dict[str, float]:
    z, labels = pipe.noise(range(batch_size), 0), _labels(pipe, batch_size)

    def networks(_: int) -> Tensor:
        return finished(pipe.to_latents(sampler(pipe.model, z, labels, guidance).x))

    def with_codec(_: int) -> Tensor:
        return finished(pipe.codec.decode(networks(batch_size)))

    def whole_call(_: int) -> Tensor:
        return pipe.sample_pixels(labels, guidance=guidance, method=sampler, batch_size=batch_size)

    ways: dict[str, Callable[[int], object]] = {
        "networks": networks,
        "with_codec": with_codec,
        "whole_call": whole_call,
    }
    return milliseconds_per_image(ways, batch_size, REPEATS)


def finished(result: Tensor) -> Tensor:
    """The same, once the device has computed it."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


def _labels(pipe: Pipeline, count: int) -> Tensor:
    return (torch.arange(count) % max(1, pipe.config.num_classes)).to(pipe.device)
