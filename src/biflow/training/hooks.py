"""Training hooks: the metrics log and the progress display."""

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.progress as bars
from rich.console import Console

from biflow.console import counted
from biflow.files import CannotWrite, write_text, writing
from biflow.training.loggers import Tracker
from biflow.training.loop import Hook, Report, Trainer


class History:
    """Hook that appends a JSON line of metrics every `log_every` steps and passes them to the trackers.

    The trainer gets them too, for its checkpoints. When a run resumes, lines after its checkpoint are dropped. On a
    full disk, lines wait for space.
    """

    def __init__(self, path: Path, stage: str, trainer: Trainer, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.stage, self.trainer, self.trackers = path, stage, trainer, trackers
        self.world, self.every = trainer.world, trainer.config.log_every
        self.waiting = ""
        if self.world.is_main:
            lines = read_history(path)
            kept = [line for line in lines if line["stage"] != stage or line["step"] <= trainer.step]
            if damaged := count_lines(path) - len(lines):
                warnings.warn(f"Dropped {counted(damaged, 'damaged line')} of {path}.", stacklevel=2)
            if damaged or len(kept) < len(lines):
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
            line = {name: finite.get(name) for name in metrics}
            self.waiting += json.dumps({"stage": self.stage, "step": step, **line}) + "\n"
            with warning_if_full():
                append_whole(self.path, self.waiting)
                self.waiting = ""
                for tracker in self.trackers:
                    with writing(self.path.parent):
                        tracker.log_metrics({f"{self.stage}/{name}": value for name, value in metrics.items()}, step)


def append_whole(path: Path, text: str) -> None:
    """Append to a file all of a text, or nothing."""
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(text.encode()) != len(text.encode()):  # a full disk takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def warning_if_full() -> Iterator[None]:
    """Turn a failure to write into a warning: training continues without logs and previews."""
    try:
        yield
    except CannotWrite as error:
        warnings.warn(f"Training continues without writing its logs or previews: {error.reason}.", stacklevel=2)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `History` without damaged ones; empty if there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := parse_line(line))]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The metrics in one line of `History`, or None if the line is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str) or type(record.get("step")) is not int:
        return None
    values = [value for name, value in record.items() if name != "stage"]
    return record if all(value is None or type(value) in {int, float} for value in values) else None


def count_lines(path: Path) -> int:
    """Number of lines of a file, also if the last one is not complete; 0 if there is no file."""
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


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
