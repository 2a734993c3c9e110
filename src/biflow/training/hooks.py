"""What watches a run: the log of its numbers, and the progress that a person sees."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.progress as bars
from rich.console import Console

from biflow.files import write_text
from biflow.training.loggers import Tracker
from biflow.training.loop import Hook, Report, Trainer


class History:
    """Appends one line of JSON to a file every few steps: stage, step, loss and its parts, speed.

    Lines that a resumed run will write again are dropped when it starts.  The trackers get the same numbers, and the
    trainer, whose checkpoints name them.
    """

    def __init__(self, path: Path, stage: str, trainer: Trainer, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.stage, self.trainer, self.trackers = path, stage, trainer, trackers
        self.world, self.every = trainer.world, trainer.config.log_every
        if self.world.is_main:
            kept = [line for line in read_history(path) if line["stage"] != stage or line["step"] <= trainer.step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, report: Report) -> None:
        """Record this step if it is one of those to record; all processes must call."""
        if report.step % self.every:
            return
        numbers = {"loss": self.world.mean(report.loss.total.detach()).item()}
        numbers |= {name: self.world.mean(value).item() for name, value in report.loss.parts.items()}
        numbers |= {"grad_norm": report.grad_norm.item(), "skipped": report.skipped}
        self.record({"seconds": round(report.seconds, 3), **numbers}, report.step)

    def record(self, numbers: Mapping[str, float], step: int) -> None:
        """Append one line of these numbers, null for those that are not finite; tell the trackers and the trainer."""
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.trainer.metrics |= finite
        if self.world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                line = {name: finite.get(name) for name in numbers}
                file.write(json.dumps({"stage": self.stage, "step": step, **line}) + "\n")
            for tracker in self.trackers:
                tracker.numbers({f"{self.stage}/{name}": value for name, value in numbers.items()}, step)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines that `History` wrote; none if there is no file, and none after a line that was cut off."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


class ProgressBoard:
    """Progress of the stages of a run: bars in a terminal, plain lines elsewhere."""

    LINES_PER_STAGE = 10

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = bars.Progress(
            bars.TextColumn("{task.description:<8}"),
            bars.BarColumn(),
            bars.TextColumn("step {task.completed}/{task.total}  {task.fields[status]}"),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def stage(self, name: str, trainer: Trainer) -> Hook:
        """A hook that shows one stage: step, loss, images per second, time left."""
        fit, start_step, before = trainer.config, trainer.step, trainer.seconds
        steps, every = fit.steps, fit.log_every
        task = self.bars.add_task(name, total=steps, completed=start_step, status="")
        first: Report | None = None
        if 0 < start_step < steps:
            self.console.print(f"{name:<8} goes on after step {start_step}/{steps}", highlight=False)

        def show(report: Report) -> None:
            nonlocal first
            if first is None:
                first = report
                if trainer.compiled:
                    seconds = report.seconds - before
                    self.console.print(f"{name:<8} compiled its layers in {seconds:.0f} s", highlight=False)
            self.bars.update(task, completed=report.step)
            if report.step % every and report.step != steps:
                return
            rate = (report.step - first.step) / max(report.seconds - first.seconds, 1e-9)
            status = f"loss {report.loss.total.item():.4f}  {rate * fit.batch_size:,.0f} images/s"
            if report.skipped:
                status += f"  {report.skipped} skipped"
            self.bars.update(task, status=status)
            due = report.step * self.LINES_PER_STAGE // steps > (report.step - every) * self.LINES_PER_STAGE // steps
            if not self.console.is_terminal and (due or report.step == steps):
                left = round((steps - report.step) / rate) if rate else 0
                self.console.print(f"{name:<8} step {report.step}/{steps}  {status}  {left // 60}:{left % 60:02d} left")

        return show
