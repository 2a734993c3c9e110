"""The training loop.  It knows steps, devices and hooks; the objective knows the model."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from biflow.config import FitConfig
from biflow.distributed import World
from biflow.errors import Diverged, InputError, Interrupted
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel
from biflow.nn.compilation import compile_layers, uncompile
from biflow.nn.transformer import Transformer
from biflow.training import checkpoints
from biflow.training.batches import Batch, on_device, split_batch
from biflow.training.checkpoints import Checkpoint
from biflow.training.optim import EMA, Optimizers
from biflow.training.sharding import clip_gradients, replicate, set_model_state, shard, whole, whole_state


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

    def networks(self, model: nn.Module) -> tuple[ForwardFlow | None, ReverseModel | None]:  # noqa: ARG002
        """The flow and the reverse model to sample with, given a copy of the model; none if it cannot sample."""
        return None, None

    def diagnose(self, batch: Batch) -> str:  # noqa: ARG002
        """Where numbers grew on the way to a loss that is not finite, in words; nothing if that is not known."""
        return ""


@dataclass(frozen=True)
class Report:
    """What hooks learn after a step."""

    step: int  # steps done so far, from 1
    loss: LossParts
    grad_norm: Tensor  # before clipping
    seconds: float  # trained so far, over all sittings
    skipped: int  # steps whose loss or gradient was not finite, so far; a GPU tells of a step one later


Hook = Callable[[Report], None]


class Outcome:
    """Flags of a step, made on the device and read later, so that the device is not waited for."""

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags.to("cpu", non_blocking=True)
        self.copied = torch.cuda.current_stream(flags.device).record_event() if flags.is_cuda else None

    def read(self) -> list[bool]:
        """Each flag, once the device has come to it."""
        if self.copied:
            self.copied.synchronize()
        return [flag > 0 for flag in self.flags.tolist()]


class Trainer:
    """Fits one model: everything that must be kept to go on where it stopped, and the steps themselves."""

    def __init__(self, objective: Objective, config: FitConfig, world: World) -> None:
        self.config, self.world = config, world
        self.plain = objective
        self.objective = spread(objective, config, world)
        inner = self.objective.module if isinstance(self.objective, DistributedDataParallel) else self.objective
        assert isinstance(inner, Objective)
        self.model, self.parts = inner.model, inner.parts
        for part in self.model.modules():
            if isinstance(part, Transformer):
                part.recompute = config.recompute
        wanted = config.compile if config.compile is not None else world.device.type == "cuda"
        self.compiled = wanted and compile_layers(self.objective, world.device)
        self.optimizers = Optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")
        self.ema = EMA(self.model, config.ema_decay)
        self.outcomes: deque[Outcome] = deque()  # of the last steps, not read yet
        self.waiting = 1 if world.device.type == "cuda" else 0  # of them, so that a GPU has work while the CPU waits
        self.stop_asked = False
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}  # what hooks last measured

    def train(
        self,
        make_batch: Callable[[int], Batch],
        *,
        hooks: Sequence[Hook] = (),
        save_to: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the steps that are left, then put the averaged weights into the model.

        make_batch(step) is this process's part of the batch.  Checkpoints go to the folder `save_to` now and then, at
        the end, and before `Interrupted` is raised.
        """
        self.objective.train()
        start = time.perf_counter()
        for batch in on_device(make_batch, range(self.step, self.config.steps), self.world.device):
            loss, grad_norm = self._take_step(batch, should_stop)
            self.step += 1
            done, due = self.step == self.config.steps, self.step % self.config.save_every == 0
            if done or due or self.stop_asked:
                self._read_outcomes()
            self.seconds += time.perf_counter() - start
            for hook in hooks:
                hook(Report(self.step, loss, grad_norm, self.seconds, self.skipped))
            if self.skipped_in_a_row >= self.config.max_skipped:
                raise Diverged(self._describe_divergence(batch, save_to))
            if save_to and (self.stop_asked or done or (due and not self.skipped_in_a_row)):
                self.save(save_to, required=self.stop_asked or done)
            if self.stop_asked and not done:
                raise Interrupted(f"saved after step {self.step} of {self.config.steps}")
            start = time.perf_counter()
        self.ema.copy_to_model()
        self.objective.eval()
        self._bring_home()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossParts:
        """The loss of a batch with the averaged weights; nothing is left changed."""
        with self.ema.in_place():
            self.objective.eval()
            with self._precision():
                loss: LossParts = self.objective(batch.map(lambda part: part.to(self.world.device)))
            self.objective.train()
        return loss

    @torch.no_grad()
    def averaged_model(self) -> nn.Module:
        """A copy of the model with its averaged weights, whole, in eval mode; all processes must call."""
        model = deepcopy(self.plain.model).to(self.world.device).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(whole(self.ema.average[name]))
        return model

    def _take_step(self, batch: Batch, should_stop: Callable[[], bool] = lambda: False) -> tuple[LossParts, Tensor]:
        """Evaluate, and move unless a number is not finite; returns loss and gradient's norm."""
        self.optimizers.set_learning_rate(self.step)
        self.optimizers.zero_grad()
        loss = self._add_gradients(batch)
        for optimizer in self.optimizers.all:
            self.scaler.unscale_(optimizer)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        grad_norm = clip_gradients(self.parts, limit)
        broken = ~(loss.total + grad_norm).isfinite()
        flags = self.world.any(torch.stack([broken, torch.full_like(broken, should_stop())]).float())
        self.outcomes.append(Outcome(flags))
        self.optimizers.step(flags[0])
        self.ema.update(self.step, flags[0])
        if self.scaler.is_enabled():
            self.scaler.update()
        self._read_outcomes(leave=self.waiting)
        return loss, grad_norm

    def _read_outcomes(self, *, leave: int = 0) -> None:
        """Count what came of the steps taken, but for so many of the last ones."""
        while len(self.outcomes) > leave:
            broken, stop = self.outcomes.popleft().read()
            self.skipped += broken
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if broken else 0
            self.stop_asked |= stop

    def _add_gradients(self, batch: Batch) -> LossParts:
        """Evaluate the loss part by part of the batch, add up its gradient, and return its mean."""
        chunks = split_batch(batch, self.config.accumulate)
        found = []
        for place, chunk in enumerate(chunks, start=1):
            with together(self.objective, last=place == len(chunks)):
                with self._precision():
                    loss: LossParts = self.objective(chunk)
                self.scaler.scale(loss.total / len(chunks)).backward()
            found.append(loss)
        return mean_loss(found)

    def _precision(self) -> torch.autocast:
        kind = torch.float16 if self.config.precision == "float16" else torch.bfloat16
        return torch.autocast(self.world.device.type, kind, enabled=self.config.precision != "float32")

    def _describe_divergence(self, batch: Batch, folder: Path | None) -> str:
        with torch.no_grad():
            where = self.plain.diagnose(batch) if self.config.sharding == "ddp" else ""
        kept, _ = checkpoints.newest(folder) if folder else (None, [])
        left = f"The checkpoint of step {kept.step} is kept." if kept else "No checkpoint had been written."
        precise = "" if self.config.precision == "float32" else ", or set precision=float32"
        found = f"the loss or its gradient was not finite {self.skipped_in_a_row} steps in a row."
        repair = f"Lower learning_rate{precise}, and start in another folder."
        return " ".join(filter(None, [f"Stopped at step {self.step}: {found}", where, left, repair]))

    def save(self, folder: Path, *, required: bool = True) -> None:
        """Write a checkpoint into the stage's folder; what cannot be written is fatal only if it is required."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "model": whole_state(self.model.state_dict(), self.world),
            "ema": whole_state(self.ema.average, self.world),
            "optimizer": self.optimizers.state_dict(self.world),
            "scaler": self.scaler.state_dict(),
        }

        def write() -> None:
            try:
                checkpoints.save(folder, state, step=self.step, metrics=self.metrics)
                checkpoints.tidy(folder, self.config)
            except OSError as error:
                fault = f"cannot save step {self.step} in {folder} ({error.strerror}); older checkpoints are intact"
                if required:
                    raise InputError(f"Expected room for a checkpoint; {fault}. Free some space, and resume.") from None
                warnings.warn(f"Training goes on, but {fault}.", stacklevel=2)

        self.world.on_main(write)

    def load(self, found: Checkpoint) -> None:
        """Take up the state that `save` wrote."""
        try:
            state = found.load(self.world.device)
            set_model_state(self.model, state["model"])
            self.optimizers.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # of another model, or written by another version
            raise InputError(
                f"Expected a training state of this model in {found.folder}; cannot take it up "
                f"({type(error).__name__}). Delete the folder to go on from an older checkpoint, or start in another."
            ) from None
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.metrics = dict(found.metrics)

    def _bring_home(self) -> None:
        """Put trained parameters that are spread over the processes into the model that was given."""
        uncompile(self.plain)
        if self.plain.model is not self.model:
            trained = {name: whole(value) for name, value in self.model.state_dict().items()}
            self.plain.model.load_state_dict(trained)
        self.plain.to(self.world.device).eval()


def spread(objective: Objective, config: FitConfig, world: World) -> nn.Module:
    """The objective as it is evaluated by all processes together."""
    if config.sharding == "fsdp" and world.size > 1:
        return shard(objective, world)
    return replicate(objective.to(world.device), world)


def together(objective: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Within it gradients are added up in each process; those of the last part are exchanged."""
    if isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
    return nullcontext()


def mean_loss(losses: Sequence[LossParts]) -> LossParts:
    """The mean of losses and of their parts, without gradient."""
    names = losses[0].parts
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in names}
    return LossParts(torch.stack([loss.total.detach() for loss in losses]).mean(), parts)
