"""Hooks that monitor training without changing it: sample previews and the validation loss."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from biflow.data.images import enlarge, make_grid, write_picture
from biflow.data.randomness import normal_for
from biflow.files import writing
from biflow.models.codec import Codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import unpatchify
from biflow.models.reverse_model import ReverseModel
from biflow.sampling.one_pass import sample_in_one_pass
from biflow.sampling.sequential import invert_sequentially
from biflow.training.batches import Batch
from biflow.training.hooks import History, warning_if_full
from biflow.training.loggers import Tracker
from biflow.training.loop import Hook, Report, Trainer
from biflow.training.objective import mean_loss

COLUMNS, ROWS = 8, 4


def every(steps: int, hook: Hook) -> Hook:
    """A hook that is called every so many steps only."""
    return lambda report: None if report.step % steps else hook(report)


def previews(folder: Path, stage: str, trainer: Trainer, *, trackers: Sequence[Tracker], codec: Codec) -> Hook:
    """Hook that saves a grid of samples from the same noise, with the averaged weights; collective."""

    def sample(report: Report) -> None:
        flow, reverse = trainer.plain.networks(trainer.averaged_model())
        if flow is None or not trainer.world.is_main:
            return
        grid = make_grid(draw(flow, reverse, codec), columns=COLUMNS)
        with warning_if_full():
            write_picture(folder / f"{stage}_{report.step:08d}.png", enlarge(grid))
        for tracker in trackers:
            with warning_if_full(), writing(folder):
                tracker.log_image(f"{stage}/samples", grid, report.step)

    return sample


@torch.no_grad()
def draw(flow: ForwardFlow, reverse: ReverseModel | None, codec: Codec) -> Tensor:
    """Unguided samples, uint8 (N, P, H, W), one column per class: in one pass, or exactly without a reverse model."""
    config, device = flow.config, flow.prior_variance.device
    noise = normal_for(range(ROWS * COLUMNS), (config.num_patches, config.patch_dim), "preview").to(device)
    labels = torch.arange(COLUMNS, device=device).repeat(ROWS) % max(1, config.num_classes)
    z = flow.scale_noise(noise)
    patches = sample_in_one_pass(reverse, z, labels).x if reverse else invert_sequentially(flow, z, labels).x
    return codec.decode(unpatchify(patches, config.patch_size, config.channels)).cpu()


def validation(trainer: Trainer, batches: Sequence[Callable[[], Batch]], history: History) -> Hook:
    """Hook that logs the loss on held-out images with the averaged weights and the same noise each time; collective."""

    def evaluate(report: Report) -> None:
        loss = mean_loss([trainer.evaluate(make_batch()) for make_batch in batches])
        history.record({f"test_{name}": value for name, value in loss.over_processes().items()}, report.step)

    return evaluate
