"""The training loop: steps, devices, checkpoints and hooks. The objective knows the model."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from biflow.config import FitConfig
from biflow.distributed import World
from biflow.errors import Diverged, InputError, Interrupted
from biflow.files import CannotWrite
from biflow.nn.compilation import compile_layers, uncompile
from biflow.nn.transformer import Transformer
from biflow.training import checkpoints
from biflow.training.batches import Batch, on_device, split_batch
from biflow.training.checkpoints import Checkpoint
from biflow.training.objective import LossParts, Objective, mean_loss
from biflow.training.optim import EMA, Optimizers
from biflow.training.sharding import clip_gradients, full_state, full_tensor, parallelise, set_model_state


@dataclass(frozen=True)
class Report:
    """What hooks receive after each step."""

    step: int  # completed steps
    loss: LossParts
    grad_norm: Tensor  # before clipping
    seconds: float  # of training, over all sessions
    skipped: int  # steps skipped so far because of NaN or Inf; lags one step behind on a GPU


Hook = Callable[[Report], None]


class Trainer:
    """Trains one model, and holds the complete state needed to resume."""

    def __init__(self, objective: Objective, config: FitConfig, world: World) -> None:
        self.config, self.world = config, world
        self.plain = objective  # as given: neither wrapped nor sharded
        self.objective = parallelise(objective, config.sharding, world)
        inner = self.objective.module if isinstance(self.objective, DistributedDataParallel) else self.objective
        assert isinstance(inner, Objective)
        self.model, self.parts, self.after_step = inner.model, inner.parts, inner.after_step
        for part in self.model.modules():
            if isinstance(part, Transformer):
                part.recompute = config.recompute
        wanted = config.compile if config.compile is not None else world.device.type == "cuda"
        self.compiled = wanted and compile_layers(self.objective, world.device)
        self.optimizers = Optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16")
        self.ema = EMA(self.model, config.ema_decay)
        self.flags: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()  # of the last steps: copy, and its end
        self.flags_lag = 1 if world.device.type == "cuda" else 0  # steps, to keep the GPU busy while the CPU waits
        self.stop_requested = False
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}  # last logged values, saved with checkpoints

    def train(
        self,
        make_batch: Callable[[int], Batch],
        *,
        hooks: Sequence[Hook] = (),
        save_to: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train for the remaining steps, then load the averaged weights into the model.

        make_batch(step) returns this process's share of the batch. Checkpoints are written to the folder `save_to`
        every `save_every` steps, at the end, and before `Interrupted` is raised.
        """
        self.objective.train()
        start = time.perf_counter()
        for batch in on_device(make_batch, range(self.step, self.config.steps), self.world.device):
            loss, grad_norm = self._take_step(batch, should_stop)
            self.step += 1
            done, due = self.step == self.config.steps, self.step % self.config.save_every == 0
            if done or due or self.stop_requested:
                self._read_flags()
            self.seconds += time.perf_counter() - start
            for hook in hooks:
                hook(Report(self.step, loss, grad_norm, self.seconds, self.skipped))
            if self.skipped_in_a_row >= self.config.max_skipped:
                raise Diverged(self._describe_divergence(batch, save_to))
            if save_to and (self.stop_requested or done or (due and not self.skipped_in_a_row)):
                self.save(save_to, required=self.stop_requested or done)
            if self.stop_requested and not done:
                raise Interrupted(f"saved after step {self.step} of {self.config.steps}")
            start = time.perf_counter()
        self.ema.copy_to_model()
        self._unshard()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossParts:
        """Loss of a batch with the averaged weights; leaves the training state unchanged."""
        with self.ema.applied():
            self.objective.eval()
            with self._precision():
                loss: LossParts = self.objective(batch.map(lambda part: part.to(self.world.device)))
            self.objective.train()
        return loss

    @torch.no_grad()
    def averaged_model(self) -> nn.Module:
        """A full copy of the model with the averaged weights, in eval mode; collective."""
        model = deepcopy(self.plain.model).to(self.world.device).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(full_tensor(self.ema.average[name]))
        return model

    def _take_step(self, batch: Batch, should_stop: Callable[[], bool] = lambda: False) -> tuple[LossParts, Tensor]:
        """One optimiser step, skipped if loss or gradient is NaN or Inf; returns the loss and the gradient norm."""
        self.optimizers.set_learning_rate(self.step)
        self.model.zero_grad()
        loss = self._add_gradients(batch)
        for optimizer in self.optimizers.all:
            self.scaler.unscale_(optimizer)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        grad_norm = clip_gradients(self.parts, limit)
        found_inf = ~(loss.total + grad_norm).isfinite()
        flags = self.world.any(torch.stack([found_inf, torch.full_like(found_inf, should_stop())]).float())
        copied = flags.to("cpu", non_blocking=True)  # without synchronising
        self.flags.append((copied, torch.cuda.current_stream(flags.device).record_event() if flags.is_cuda else None))
        self.optimizers.step(flags[0])
        if flags.is_cuda or not flags[0]:  # a GPU, not synchronised, averages the parameters that a skip left unchanged
            self.ema.update(self.step)
        self.after_step(flags[0])
        if self.scaler.is_enabled():
            self.scaler.update()
        self._read_flags(lag=self.flags_lag)
        return loss, grad_norm

    def _read_flags(self, *, lag: int = 0) -> None:
        """Read the flags of all steps but the last `lag`."""
        while len(self.flags) > lag:
            flags, copied = self.flags.popleft()
            if copied:
                copied.synchronize()
            skipped, stop = flags.bool().tolist()
            self.skipped += skipped
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            self.stop_requested |= stop

    def _add_gradients(self, batch: Batch) -> LossParts:
        """Accumulate gradients over the parts of a batch; returns the mean loss."""
        chunks = split_batch(batch, self.config.accumulate)
        losses = []
        for i, chunk in enumerate(chunks, start=1):
            with gradient_sync(self.objective, enabled=i == len(chunks)):
                with self._precision():
                    loss: LossParts = self.objective(chunk)
                self.scaler.scale(loss.total / len(chunks)).backward()
            losses.append(loss)
        return mean_loss(losses)

    def _precision(self) -> torch.autocast:
        kind = torch.float16 if self.config.precision == "float16" else torch.bfloat16
        return torch.autocast(self.world.device.type, kind, enabled=self.config.precision != "float32")

    def _describe_divergence(self, batch: Batch, folder: Path | None) -> str:
        where = self.plain.diagnose(batch) if self.config.sharding == "ddp" else ""
        kept, _ = checkpoints.newest(folder) if folder else (None, [])
        left = f"The checkpoint of step {kept.step} is kept." if kept else "No checkpoint was written."
        precise = "" if self.config.precision == "float32" else " or set precision=float32"
        found = f"the loss or its gradient was NaN or Inf for {self.skipped_in_a_row} steps in a row."
        repair = f"Lower learning_rate{precise}, and start in a new folder."
        return " ".join(filter(None, [f"Stopped at step {self.step}: {found}", where, left, repair]))

    def save(self, folder: Path, *, required: bool = True) -> None:
        """Write a checkpoint into the stage's folder; if that fails, raise if it is required, else warn."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "model": full_state(self.model.state_dict(), self.world),
            "ema": full_state(self.ema.average, self.world),
            "optimizer": self.optimizers.state_dict(self.world),
            "scaler": self.scaler.state_dict(),
        }

        def write() -> None:
            try:
                checkpoints.save(folder, state, step=self.step, metrics=self.metrics)
                checkpoints.tidy(folder, self.config)
            except CannotWrite as error:
                fault = f"cannot save step {self.step} in {folder} ({error.reason}); older checkpoints are intact"
                if required:
                    raise InputError(f"Expected room for a checkpoint; {fault}. Free some space, and resume.") from None
                warnings.warn(f"Training continues, but {fault}.", stacklevel=2)

        self.world.on_main(write)

    def load(self, found: Checkpoint) -> None:
        """Restore a checkpoint, whatever world size and sharding it was saved with."""
        try:
            state = found.load(self.world.device)
            set_model_state(self.model, state["model"])
            self.optimizers.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # another model, or another version of biflow
            raise InputError(
                f"Expected a training state of this model in {found.folder}; cannot load it ({type(error).__name__}). "
                "Delete the folder to resume from an older checkpoint, or start in a new folder."
            ) from None
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.metrics = dict(found.metrics)

    def _unshard(self) -> None:
        """Load the trained parameters into the original model if it was copied to be sharded."""
        uncompile(self.plain)
        if self.plain.model is not self.model:
            trained = {name: full_tensor(value) for name, value in self.model.state_dict().items()}
            self.plain.model.load_state_dict(trained)
        self.plain.to(self.world.device).eval()


def gradient_sync(objective: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Context for one accumulation step: processes exchange gradients only if enabled."""
    if isinstance(objective, DistributedDataParallel) and not enabled:
        return objective.no_sync()
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(enabled)
    return nullcontext()
