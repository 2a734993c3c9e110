"""The plan of a run as table rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from biflow.config import FitConfig, RunConfig
from biflow.errors import InputError
from biflow.plan.memory import Memory, frozen_parameters, step_memory, trained_parameters
from biflow.plan.operations import sampling, stage_fits, training_step

GIGA, GIB = 1e9, 2.0**30
STRATEGIES = {"DDP": {"sharded": False}, "FSDP2": {"sharded": True}}


@dataclass(frozen=True)
class Machine:
    """The hardware of a plan: devices, GiB of memory and peak TFLOP/s per device, and the utilisation."""

    devices: int = 8
    device_memory: float = 80.0
    tflops: float = 400.0
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InputError(f"Expected 1 device or more; got {self.devices}. Set --devices.")
        for value, unit, option in (
            (self.device_memory, "GiB of memory", "device-memory"),
            (self.tflops, "TFLOP/s", "tflops"),
        ):
            if not 0 < value < math.inf:
                raise InputError(f"Expected {unit} of a device above 0; got {value:g}. Set --{option}.")
        if not 0 < self.utilisation <= 1:
            raise InputError(f"Expected a utilisation above 0, up to 1; got {self.utilisation:g}. Set --utilisation.")

    def share(self, batch_size: int) -> int:
        """Images per device, of a batch divided evenly among the devices."""
        if batch_size % self.devices:
            raise InputError(
                f"Expected a batch size divisible by {self.devices} devices; got {batch_size}. Set --devices to a "
                "divisor of it, or batch_size to a multiple of the devices."
            )
        return batch_size // self.devices

    def hours(self, operations: float) -> float:
        """Hours for this many FLOPs on all devices."""
        return operations / (self.devices * self.tflops * 1e12 * self.utilisation) / 3600


def parameter_rows(config: RunConfig) -> list[list[str]]:
    """Trained and frozen parameters of each stage."""
    counts = [
        (stage, trained_parameters(config, stage).all, frozen_parameters(config, stage).all)
        for stage in stage_fits(config)
    ]
    return [["", "trained", "frozen"], *([stage, f"{trained:,}", f"{frozen:,}"] for stage, trained, frozen in counts)]


def operation_rows(config: RunConfig) -> list[list[str]]:
    """GFLOPs per image of each stage's training step and each sampling method."""
    training = {f"training, {name}": training_step(config, name).operations for name in stage_fits(config)}
    counts = training | sampling(config.model)
    return [["", "GFLOPs"], *([name, f"{count / GIGA:,.3f}"] for name, count in counts.items())]


def memory_rows(config: RunConfig, stage: str, machine: Machine) -> list[list[str]]:
    """Peak GiB per device of a stage's step, with and without activation checkpointing."""
    batch = machine.share(stage_fits(config)[stage].batch_size)
    columns = {
        f"{name}{', recompute' if recompute else ''}": step_memory(
            config, stage, devices=machine.devices, recompute=recompute, **options
        )
        for recompute in (False, True)
        for name, options in STRATEGIES.items()
    }
    lines: dict[str, Callable[[Memory], float]] = {
        "parameters": lambda memory: memory.parameters,
        "gradients": lambda memory: memory.gradients,
        "optimizer moments": lambda memory: memory.moments,
        "moving average": lambda memory: memory.average,
        "copies": lambda memory: memory.copies,
        "activations": lambda memory: memory.peak(batch) - memory.fixed,
        "total": lambda memory: memory.peak(batch),
    }
    rows = [[name, *(_gib(bytes_of(each)) for each in columns.values())] for name, bytes_of in lines.items()]
    room = machine.device_memory * GIB
    fits = ["yes" if each.peak(batch) <= room else "no" for each in columns.values()]
    largest = [str(each.largest_batch(room)) for each in columns.values()]
    return [
        ["", *columns],
        *rows,
        [f"fits in {machine.device_memory:g} GiB", *fits],
        ["largest batch per device", *largest],
    ]


def _format_hours(hours: float) -> str:
    """Hours with two decimals.

    >>> _format_hours(12.5), _format_hours(0.000123)
    ('12.50', 'under 0.01')
    """
    return f"{hours:,.2f}" if hours >= 0.01 else "under 0.01"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB else f"{size / GIB:.2g}"


def hour_rows(config: RunConfig, machine: Machine) -> list[list[str]]:
    """Training hours of each stage."""
    fits = stage_fits(config)
    hours = {name: machine.hours(_operations(config, name, fit)) for name, fit in fits.items()}
    return [
        ["", "steps", "images per step", "hours"],
        *(
            [name, f"{fit.steps:,}", f"{fit.batch_size:,}", f"{_format_hours(hours[name])}"]
            for name, fit in fits.items()
        ),
    ]


def _operations(config: RunConfig, stage: str, fit: FitConfig) -> float:
    return fit.steps * fit.batch_size * training_step(config, stage).operations


def left_out(config: RunConfig) -> list[str]:
    """Networks that a run uses but the plan does not count."""
    return sorted({name for stage in stage_fits(config) for name in training_step(config, stage).left_out})
