"""Experiment trackers: TensorBoard, Weights & Biases, trackio."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from biflow.config import RunConfig, TrackerName
from biflow.extras import require


class TensorBoard:
    """Event files in the run folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, _: RunConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_image(self, name: str, pixels: Tensor, step: int) -> None:
        """Write one image, uint8 (P, H, W)."""
        self.writer.add_image(name, pixels.numpy(), step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class WandbTracker:
    """A wandb run, or that of a package with the same interface; a resumed run continues under the same name.

    The step is logged as a metric: it restarts at 1 in each stage, and wandb's own count must not decrease.
    """

    def __init__(self, package: Any, folder: Path, config: RunConfig, **options: Any) -> None:
        self.package = package
        self.run = package.init(
            project="biflow", name=folder.name, config=config.model_dump(mode="json"), resume="allow", **options
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics as one record."""
        self.run.log({**metrics, "step": step})

    def log_image(self, name: str, pixels: Tensor, step: int) -> None:
        """Log one image, uint8 (P, H, W)."""
        array = np.ascontiguousarray(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        self.run.log({name: self.package.Image(array), "step": step})

    def close(self) -> None:
        """Finish the run; waits for uploads."""
        self.run.finish()


Tracker = TensorBoard | WandbTracker
TRACKERS: Mapping[TrackerName, Callable[[Path, RunConfig], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder, config: WandbTracker(require("wandb"), folder, config, dir=str(folder), id=folder.name),
    "trackio": lambda folder, config: WandbTracker(require("trackio"), folder, config),
}


def open_trackers(folder: Path, config: RunConfig) -> list[Tracker]:
    """Open the trackers of `watch.trackers`."""
    for name in config.watch.trackers:
        require(name)  # all, before any is opened
    return [TRACKERS[name](folder, config) for name in config.watch.trackers]
