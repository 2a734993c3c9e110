"""Hooks that monitor training without changing it: sample previews and the validation loss."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from biflow.data.images import enlarge, make_grid, write_picture
from biflow.data.randomness import normal_for
from biflow.models.codec import Codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.sequential import invert_sequentially
from biflow.training.batches import Batch
from biflow.training.loggers import Tracker
from biflow.training.loop import LossParts, Report, Trainer

COLUMNS, ROWS = 8, 4


class Previews:
    """Hook that saves a grid of samples every `every` steps, from the same noise, with the averaged weights."""

    def __init__(
        self, folder: Path, stage: str, trainer: Trainer, *, every: int, trackers: Sequence[Tracker], codec: Codec
    ) -> None:
        self.folder, self.stage, self.trainer, self.codec = folder, stage, trainer, codec
        self.every, self.trackers = every, trackers

    def __call__(self, report: Report) -> None:
        """Sample if it is due; collective."""
        if report.step % self.every:
            return
        flow, reverse = self.trainer.plain.networks(self.trainer.averaged_model())
        if flow is None or not self.trainer.world.is_main:
            return
        grid = make_grid(draw(flow, reverse, self.codec), columns=COLUMNS)
        self.folder.mkdir(exist_ok=True)
        write_picture(self.folder / f"{self.stage}_{report.step:08d}.png", enlarge(grid))
        for tracker in self.trackers:
            tracker.log_image(f"{self.stage}/samples", grid, report.step)


@torch.no_grad()
def draw(flow: ForwardFlow, reverse: ReverseModel | None, codec: Codec) -> Tensor:
    """Samples without guidance, uint8 (N, P, H, W), one column per class for the first classes.

    Samples in one pass if there is a reverse model, else by the exact inverse.
    """
    config, device = flow.config, flow.prior_variance.device
    noise = normal_for(range(ROWS * COLUMNS), (config.num_patches, config.patch_dim), "preview").to(device)
    labels = torch.arange(COLUMNS, device=device).repeat(ROWS) % max(1, config.num_classes)
    z = flow.scale_noise(noise)
    patches = sample_in_one_pass(reverse, z, labels).x if reverse else invert_sequentially(flow, z, labels).x
    return codec.decode(unpatchify(patches, config.patch_size, config.channels)).cpu()


class Validation:
    """Hook that evaluates the loss on held-out images, with the averaged weights and the same noise every time."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Sequence[Callable[[], Batch]],
        *,
        every: int,
        record: Callable[[Mapping[str, float], int], None],
    ) -> None:
        self.trainer, self.batches, self.every, self.record = trainer, batches, every, record

    def __call__(self, report: Report) -> None:
        """Evaluate if it is due; collective."""
        if report.step % self.every:
            return
        losses = [self.trainer.evaluate(make_batch()) for make_batch in self.batches]
        self.record(self.mean(losses), report.step)

    def mean(self, losses: Sequence[LossParts]) -> dict[str, float]:
        """Mean loss and terms over batches and processes, by name."""
        world = self.trainer.world
        parts = [{"loss": loss.total, **loss.parts} for loss in losses]
        return {f"test_{name}": world.mean(torch.stack([p[name] for p in parts]).mean()).item() for name in parts[0]}
