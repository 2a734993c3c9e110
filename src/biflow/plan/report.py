"""The plan of a run in rows for tables, and in sentences."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from biflow.config import FitConfig, RunConfig
from biflow.errors import InputError
from biflow.plan.memory import Memory, frozen_parameters, step_memory, trained_parameters
from biflow.plan.operations import sampling, stage_fits, training_step

GIGA, GIB = 1e9, 2.0**30
WAYS = {"DDP": {"sharded": False}, "FSDP2": {"sharded": True}}


@dataclass(frozen=True)
class Machine:
    """What a run is planned for: so many devices, GiB of memory and peak TFLOP/s of each, and the share in use."""

    devices: int = 8
    device_memory: float = 80.0
    tflops: float = 400.0
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InputError(f"Expected 1 device or more; got {self.devices}. Set --devices.")
        for value, what, option in (
            (self.device_memory, "GiB of memory", "device-memory"),
            (self.tflops, "TFLOP/s", "tflops"),
        ):
            if not 0 < value < math.inf:
                raise InputError(f"Expected {what} of a device above 0; got {value:g}. Set --{option}.")
        if not 0 < self.utilisation <= 1:
            raise InputError(
                f"Expected a utilisation above 0, up to 1 (all of it); got {self.utilisation:g}. Set --utilisation."
            )

    def share(self, batch_size: int) -> int:
        """Images a device, of a batch that all devices share evenly."""
        if batch_size % self.devices:
            raise InputError(
                f"Expected a batch that {self.devices} devices can share evenly; got {batch_size}. Set --devices to a "
                "divisor of it, or batch_size to a multiple of them."
            )
        return batch_size // self.devices

    def hours(self, operations: float) -> float:
        """Hours that all devices take for so many operations."""
        return operations / (self.devices * self.tflops * 1e12 * self.utilisation) / 3600


def parameter_rows(config: RunConfig) -> list[list[str]]:
    """What each stage trains, and what it reads beside, frozen."""
    counts = [
        (stage, trained_parameters(config, stage).all, frozen_parameters(config, stage).all)
        for stage in stage_fits(config)
    ]
    return [["", "trained", "frozen"], *([stage, f"{trained:,}", f"{frozen:,}"] for stage, trained, frozen in counts)]


def operation_rows(config: RunConfig) -> list[list[str]]:
    """GFLOPs an image of a training step of each stage, and of each way of sampling."""
    training = {f"training, {name}": training_step(config, name).operations for name in stage_fits(config)}
    counts = training | sampling(config.model)
    return [["", "GFLOPs"], *([name, f"{count / GIGA:,.3f}"] for name, count in counts.items())]


def memory_rows(config: RunConfig, stage: str, machine: Machine) -> list[list[str]]:
    """GiB on a device at the peak of a stage's step, without and with recomputing the layers."""
    batch = machine.share(stage_fits(config)[stage].batch_size)
    columns = {
        f"{way}{', recompute' if again else ''}": step_memory(
            config, stage, devices=machine.devices, recompute=again, **options
        )
        for again in (False, True)
        for way, options in WAYS.items()
    }
    lines: dict[str, Callable[[Memory], float]] = {
        "parameters": lambda memory: memory.parameters,
        "gradients": lambda memory: memory.gradients,
        "moments of AdamW": lambda memory: memory.moments,
        "moving average": lambda memory: memory.average,
        "copies": lambda memory: memory.copies,
        "activations": lambda memory: memory.peak(batch) - memory.fixed,
        "in all": lambda memory: memory.peak(batch),
    }
    rows = [[name, *(_gib(of(each)) for each in columns.values())] for name, of in lines.items()]
    room = machine.device_memory * GIB
    fits = ["yes" if each.peak(batch) <= room else "no" for each in columns.values()]
    largest = [str(each.largest_batch(room)) for each in columns.values()]
    return [
        ["", *columns],
        *rows,
        [f"fits in {machine.device_memory:g} GiB", *fits],
        ["most images a device", *largest],
    ]


def _hours_of(hours: float) -> str:
    """Two decimals, which are enough where it matters.

    >>> _hours_of(12.5), _hours_of(0.000123)
    ('12.50', 'under 0.01')
    """
    return f"{hours:,.2f}" if hours >= 0.01 else "under 0.01"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB else f"{size / GIB:.2g}"


def hour_rows(config: RunConfig, machine: Machine) -> list[list[str]]:
    """Hours of each stage."""
    fits = stage_fits(config)
    hours = {name: machine.hours(_operations(config, name, fit)) for name, fit in fits.items()}
    return [
        ["", "steps", "images a step", "hours"],
        *([name, f"{fit.steps:,}", f"{fit.batch_size:,}", f"{_hours_of(hours[name])}"] for name, fit in fits.items()),
    ]


def _operations(config: RunConfig, stage: str, fit: FitConfig) -> float:
    return fit.steps * fit.batch_size * training_step(config, stage).operations


def left_out(config: RunConfig) -> list[str]:
    """Networks that a run needs and the plan does not count."""
    return sorted({name for stage in stage_fits(config) for name in training_step(config, stage).left_out})
