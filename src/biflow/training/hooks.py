"""Training hooks: the metrics log and the progress display."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import rich.progress as bars
from rich.console import Console

from biflow.files import write_text
from biflow.training.loggers import Tracker
from biflow.training.loop import Hook, Report, Trainer


class History:
    """Hook that appends a JSON line of metrics every `log_every` steps and passes them to the trackers.

    The trainer gets them too, for its checkpoints. When a run resumes, lines after its checkpoint are dropped.
    """

    def __init__(self, path: Path, stage: str, trainer: Trainer, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.stage, self.trainer, self.trackers = path, stage, trainer, trackers
        self.world, self.every = trainer.world, trainer.config.log_every
        if self.world.is_main:
            kept = [line for line in read_history(path) if line["stage"] != stage or line["step"] <= trainer.step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, report: Report) -> None:
        """Log the step if it is due; collective."""
        if report.step % self.every:
            return
        seconds, losses = round(report.seconds, 3), report.loss.over_processes()
        rest = {"grad_norm": report.grad_norm.item(), "skipped": report.skipped}
        self.record({"seconds": seconds, **losses, **rest}, report.step)

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics to the file, the trackers and the trainer; NaN and Inf become null in the file."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.trainer.metrics |= finite
        if self.world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                line = {name: finite.get(name) for name in metrics}
                file.write(json.dumps({"stage": self.stage, "step": step, **line}) + "\n")
            for tracker in self.trackers:
                tracker.log_metrics({f"{self.stage}/{name}": value for name, value in metrics.items()}, step)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `History`, up to the first truncated one; empty if there is no file."""
    lines: list[dict[str, Any]] = []
    with suppress(FileNotFoundError, json.JSONDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    return lines


class ProgressBoard(bars.Progress):
    """Progress of each stage: bars in a terminal, about ten lines per stage elsewhere."""

    LINES_PER_STAGE = 10

    def __init__(self, console: Console) -> None:
        super().__init__(
            bars.TextColumn("{task.description:<8}"),
            bars.BarColumn(),
            bars.TextColumn("step {task.completed}/{task.total}  {task.fields[status]}"),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )

    def stage(self, name: str, trainer: Trainer) -> Hook:
        """Hook that shows a stage's step, loss, images per second and time left."""
        fit, start_step, before = trainer.config, trainer.step, trainer.seconds
        steps, every = fit.steps, fit.log_every
        task = self.add_task(name, total=steps, completed=start_step, status="")
        first: Report | None = None
        if 0 < start_step < steps:
            self.console.print(f"{name:<8} resumes at step {start_step}/{steps}", highlight=False)

        def show(report: Report) -> None:
            nonlocal first
            if first is None:
                first = report
                if trainer.compiled:
                    seconds = report.seconds - before
                    self.console.print(f"{name:<8} compiled in {seconds:.0f} s", highlight=False)
            self.update(task, completed=report.step)
            if report.step % every and report.step != steps:
                return
            rate = (report.step - first.step) / max(report.seconds - first.seconds, 1e-9)
            status = f"loss {report.loss.total.item():.4f}  {rate * fit.batch_size:,.0f} images/s"
            if report.skipped:
                status += f"  {report.skipped} skipped"
            self.update(task, status=status)
            due = report.step * self.LINES_PER_STAGE // steps > (report.step - every) * self.LINES_PER_STAGE // steps
            if not self.console.is_terminal and (due or report.step == steps):
                left = round((steps - report.step) / rate) if rate else 0
                self.console.print(f"{name:<8} step {report.step}/{steps}  {status}  {left // 60}:{left % 60:02d} left")

        return show
