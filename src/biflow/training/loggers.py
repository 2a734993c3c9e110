"""Where a run's numbers and pictures go beside its folder: TensorBoard, Weights & Biases, trackio."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from biflow.config import RunConfig, TrackerName
from biflow.extras import require


class Tracker(Protocol):
    """Takes numbers and pictures, each with the step that they belong to."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record these, by name."""

    def picture(self, name: str, pixels: Tensor, step: int) -> None:
        """Record a picture, uint8 (P, H, W)."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in the run folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, _: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """One scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: Tensor, step: int) -> None:
        """An image."""
        self.writer.add_image(name, pixels.numpy(), step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class Logged:
    """A run of a package with the interface of wandb; one that is resumed goes on under the same name.

    A stage's steps begin at 1 again, so they are logged as a number, and not as the package's own count.
    """

    def __init__(self, package: Any, folder: Path, config: RunConfig, **options: Any) -> None:
        self.package = package
        self.run = package.init(project="biflow", name=folder.name, config=config.model_dump(mode="json"), **options)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """One line of all of them."""
        self.run.log({**values, "step": step})

    def picture(self, name: str, pixels: Tensor, step: int) -> None:
        """An image."""
        array = np.ascontiguousarray(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        self.run.log({name: self.package.Image(array), "step": step})

    def close(self) -> None:
        """Wait until everything is written."""
        self.run.finish()


def wandb(folder: Path, config: RunConfig) -> Tracker:
    """Weights & Biases; it reads its own settings, such as WANDB_MODE=offline."""
    import wandb

    return Logged(wandb, folder, config, dir=str(folder), id=folder.name, resume="allow")


def trackio(folder: Path, config: RunConfig) -> Tracker:
    """Trackio: kept on this machine unless it is told otherwise."""
    import trackio

    return Logged(trackio, folder, config, resume="allow")


TRACKERS: Mapping[TrackerName, Callable[[Path, RunConfig], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": wandb,
    "trackio": trackio,
}


def open_trackers(folder: Path, config: RunConfig) -> list[Tracker]:
    """The trackers that the config names."""
    for name in config.watch.trackers:
        require(name)
    return [TRACKERS[name](folder, config) for name in config.watch.trackers]
