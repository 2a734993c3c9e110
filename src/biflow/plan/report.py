"""The plan of a run as table rows."""

from dataclasses import dataclass

from biflow.config import RunConfig
from biflow.errors import InputError, check_number
from biflow.plan.memory import frozen_parameters, step_memory, trained_parameters
from biflow.plan.operations import sampling, stage_fits, training_step

GIGA, GIB = 1e9, 2.0**30


@dataclass(frozen=True)
class Machine:
    """The hardware of a plan: devices, GiB of memory and peak TFLOP/s per device, and the utilisation."""

    devices: int = 8
    device_memory: float = 80.0
    tflops: float = 400.0
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        check_number(self.devices, "--devices", least=1, whole=True)
        check_number(self.device_memory, "--device-memory", above=True)
        check_number(self.tflops, "--tflops", above=True)
        check_number(self.utilisation, "--utilisation", most=1, above=True)

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
    rows = [["", "trained", "frozen"]]
    for stage in stage_fits(config):
        trained, frozen = trained_parameters(config, stage).all, frozen_parameters(config, stage)
        rows.append([stage, f"{trained:,}", f"{frozen:,}"])
    return rows


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
            config, stage, devices=machine.devices, sharded=name == "FSDP2", recompute=recompute
        )
        for recompute in (False, True)
        for name in ("DDP", "FSDP2")
    }
    room, found = machine.device_memory * GIB, columns.values()
    names = ("parameters", "gradients", "optimizer moments", "moving average", "copies", "activations", "total")
    sizes = [(*each[:5], each.peak(batch) - each.fixed, each.peak(batch)) for each in found]
    return [
        ["", *columns],
        *([name, *map(_gib, values)] for name, *values in zip(names, *sizes, strict=True)),
        [f"fits in {machine.device_memory:g} GiB", *("yes" if each.peak(batch) <= room else "no" for each in found)],
        ["largest batch per device", *(f"{each.largest_batch(room):,}" for each in found)],
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
    rows = [["", "steps", "images per step", "hours"]]
    for name, fit in stage_fits(config).items():
        hours = machine.hours(fit.steps * fit.batch_size * training_step(config, name).operations)
        rows.append([name, f"{fit.steps:,}", f"{fit.batch_size:,}", _format_hours(hours)])
    return rows


def left_out(config: RunConfig) -> list[str]:
    """Networks that a run uses but the plan does not count."""
    return sorted({name for stage in stage_fits(config) for name in training_step(config, stage).left_out})
