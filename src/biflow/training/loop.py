"""The training loop.  It knows steps, devices and hooks; the objective knows the model."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biflow.config import FitConfig
from biflow.errors import InputError, Interrupted
from biflow.files import replace_file
from biflow.losses.perceptual import WHOLE, Window
from biflow.training.distributed import World
from biflow.training.optim import EMA, make_optimizer, make_schedule


class Batch(NamedTuple):
    """One process's part of a training batch, with everything random already done to it."""

    clean: Tensor  # (B, P, H, W)
    noisy: Tensor  # (B, P, H, W)
    labels: Tensor  # (B,), some of them null
    guidance: Tensor  # (B,), strengths to train the reverse model with; 0 where the label is null
    images: Tensor | None = None  # (B, P, H, W) in [-1, 1], where an encoder sees other images than the flow
    window: Window = WHOLE  # the part of all images that the networks of distances see


class LossParts(NamedTuple):
    """A loss, and what it is made of."""

    total: Tensor  # scalar, has gradient
    parts: Mapping[str, Tensor]  # detached scalars, for the log only


class Objective(nn.Module):
    """A loss and the model it trains; forward takes a `Batch` and returns `LossParts`.

    It says what it needs done to its batches: Gaussian noise of this standard deviation, uniform noise in bins of
    this width, strengths of guidance up to this, and whether it must see the images where the flow sees latents.
    """

    noise_std = 0.0
    bin_width = 0.0
    max_guidance = 0.0
    sees_images = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def parts(self) -> list[nn.Module]:
        """Parts of the model that learn independently: the gradient of each is clipped alone."""
        return [self.model]

    def check_resumed(self) -> None:
        """Raise unless the model, whose saved state was just taken up, belongs to all else that the loss reads."""


@dataclass(frozen=True)
class Report:
    """What hooks learn after a step."""

    step: int  # steps done so far, from 1
    loss: LossParts
    grad_norm: Tensor  # before clipping
    seconds: float  # trained so far, over all sittings


Hook = Callable[[Report], None]


def compile_if_possible(module: nn.Module) -> nn.Module:
    """The module with its forward pass compiled, in place; as it was, with a warning, where nothing can compile."""
    try:
        torch.compile(torch.nn.functional.gelu)(next(module.parameters()))
    except Exception as error:  # a missing compiler shows itself in several ways
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"Training without torch.compile, which fails on this machine ({reason}).", stacklevel=2)
    else:
        module.compile()
    return module


class Trainer:
    """Fits one model: everything that must be kept to go on where it stopped, and the steps themselves."""

    def __init__(self, objective: Objective, config: FitConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.model, self.parts = objective.to(world.device).model, objective.parts
        self.parallel_objective = world.parallel(compile_if_possible(objective) if config.compile else objective)
        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema_decay)
        self.step = 0
        self.seconds = 0.0

    def train(
        self,
        make_batch: Callable[[int], Batch],
        *,
        hooks: Sequence[Hook] = (),
        save_to: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the steps that are left, then put the averaged weights into the model.

        make_batch(step) is this process's part of the batch.  The state is saved to `save_to` now and then,
        at the end, and before `Interrupted` is raised.
        """
        schedule = make_schedule(self.optimizer, self.config, self.step)
        self.parallel_objective.train()
        while self.step < self.config.steps:
            start = time.perf_counter()
            loss, grad_norm = self._take_step(make_batch(self.step))
            schedule.step()
            self.ema.update(self.step)
            self.step += 1
            self.seconds += time.perf_counter() - start
            for hook in hooks:
                hook(Report(self.step, loss, grad_norm, self.seconds))
            stop = self.world.any(should_stop())
            if save_to and (stop or self.step % self.config.save_every == 0 or self.step == self.config.steps):
                self.save(save_to)
            if stop and self.step < self.config.steps:
                raise Interrupted(f"saved after step {self.step} of {self.config.steps}")
        self.ema.copy_to_model()
        self.parallel_objective.eval()

    def _take_step(self, batch: Batch) -> tuple[LossParts, Tensor]:
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            loss: LossParts = self.parallel_objective(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norms = [nn.utils.clip_grad_norm_(part.parameters(), limit) for part in self.parts]
        self.optimizer.step()
        return loss, torch.stack(norms).norm()

    def save(self, path: Path) -> None:
        """Write the state to one file; the file is whole or not there."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

        def write() -> None:
            with replace_file(path) as temporary:
                torch.save(state, temporary)

        self.world.on_main(write)

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.world.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # a damaged file shows itself as any of a dozen types
            raise InputError(
                f"Expected a whole training state in {path}; could not read it ({type(error).__name__}). "
                "Delete this file to train this stage again."
            ) from None
        self.step, self.seconds = state["step"], state["seconds"]
