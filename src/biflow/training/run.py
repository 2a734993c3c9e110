"""Run folders: config.yaml, about.json, metrics.jsonl, rejected.txt, previews/, states/ and, when done, model/."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from biflow.checkpoint import save_model
from biflow.config import RunConfig, WatchConfig
from biflow.config.base import check_recorded, to_yaml
from biflow.data.datasets import ImageSource, Source
from biflow.data.scan import write_rejected
from biflow.distributed import World, join_world
from biflow.errors import InputError, Interrupted
from biflow.files import check_writable, write_text
from biflow.models.codec import Codec, make_codec
from biflow.training.batches import check_splits
from biflow.training.hooks import History, ProgressBoard
from biflow.training.loggers import Tracker, open_trackers
from biflow.training.loop import Hook, Trainer
from biflow.training.previews import every, previews, validation
from biflow.training.provenance import add_session, training_facts
from biflow.training.signals import stop_on_signal
from biflow.training.stages import Run, RunNetworks, Trained, prepare, training_batches

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "metrics.jsonl"
ABOUT_FILE = "about.json"
PREVIEWS_FOLDER = "previews"
REJECTED_FILE = "rejected.txt"
STATES_FOLDER = "states"
MODEL_FOLDER = "model"


@contextmanager
def open_run(
    config: RunConfig,
    data: Source,
    folder: Path,
    *,
    resume: bool,
    console: Console,
    held_out: ImageSource | None = None,
    codec: Codec | None = None,
) -> Iterator[Run]:
    """Start or resume a run in this folder, in a single process or under a launcher.

    Inside the context, Ctrl-C and SIGTERM stop training between two steps and save its state. An unconditional model
    ignores the classes of the data.

    held_out: images for the validation loss, which `watch.validate_every` turns on. codec: the model's, if it is
    already loaded.
    """
    if not config.model.num_classes:
        data = data.without_classes()
    codec = codec or make_codec(config.model.codec)

    def begin() -> RunNetworks:
        networks = prepare(config, data, codec)
        check_batches(config, world)
        check_run_folder(folder, config, resume=resume)
        check_watch(config, held_out)
        (folder / STATES_FOLDER).mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, to_yaml(config))
        add_session(folder / ABOUT_FILE, world)
        if data.rejected:
            write_rejected(folder / REJECTED_FILE, data.rejected)
            message = f"Warning: skipped {len(data.rejected)} unreadable images, listed in {folder / REJECTED_FILE}."
            console.print(message, markup=False, highlight=False, soft_wrap=True)
        return networks

    with join_world() as world, stop_on_signal() as should_stop:
        networks = world.on_main(begin) or prepare(config, data, codec)
        trackers = open_trackers(folder, config) if world.is_main else []
        with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:
            factory = HookFactory(folder, config.watch, board, trackers, codec)
            run = Run(config, data, codec, world, folder / STATES_FOLDER, factory.make_hooks, should_stop, networks)
            if held_out:
                factory.held_out = replace(run, data=held_out if data.class_names else held_out.without_classes())
            try:
                yield run
                if should_stop():
                    raise Interrupted("all training is done and saved")
            except Interrupted as stop:
                stop.terminated = should_stop.terminated
                raise
            finally:
                for tracker in trackers:
                    tracker.close()


def keep_model(run: Run, trained: Trained, folder: Path) -> None:
    """Save the trained model and a record of its training; call in the main process only."""
    facts = training_facts(run.config, trained.seconds, run.states.parent / HISTORY_FILE, run.world)
    save_model(trained.model, folder, facts)


@dataclass
class HookFactory:
    """Makes the hooks of each stage: metrics log, progress, and those set under `watch`."""

    folder: Path
    config: WatchConfig
    board: ProgressBoard
    trackers: Sequence[Tracker]
    codec: Codec
    held_out: Run | None = None  # the same run with held-out images as its data

    def make_hooks(self, stage: str, trainer: Trainer) -> Sequence[Hook]:
        """Make the hooks of one stage; the log of a resumed one is continued."""
        history = History(self.folder / HISTORY_FILE, stage, trainer, self.trackers)
        hooks: list[Hook] = [history, self.board.stage(stage, trainer)]
        if self.config.preview_every:
            target = self.folder / PREVIEWS_FOLDER
            hook = previews(target, stage, trainer, trackers=self.trackers, codec=self.codec)
            hooks.append(every(self.config.preview_every, hook))
        if self.config.validate_every and self.held_out:
            make_batch = training_batches(self.held_out, "validation", trainer.plain, trainer.config)
            batches = [partial(make_batch, step) for step in range(self.config.validate_batches)]
            hooks.append(every(self.config.validate_every, validation(trainer, batches, history)))
        return hooks


def check_batches(config: RunConfig, world: World) -> None:
    """Raise unless batch sizes are divisible by the number of processes and by `accumulate`."""
    fits = [config.fit_flow] if config.stage != "reverse" else []
    for fit in [*fits, *([config.fit_reverse] if config.fit_reverse and config.stage != "flow" else [])]:
        check_splits(len(world.share(torch.arange(fit.batch_size))), fit.accumulate)


def check_watch(config: RunConfig, held_out: ImageSource | None) -> None:
    """Raise if `watch.validate_every` is set without held-out images."""
    if config.watch.validate_every and not held_out:
        raise InputError(
            f"Expected held-out images in {config.data!r} for watch.validate_every; there are none. "
            "Set reading.test_share, or watch.validate_every=0."
        )


def check_run_folder(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise unless a run with this config can start or resume in this folder."""
    if resume:
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(
                f"Expected a run to resume in {folder}; it has no {CONFIG_FILE}. Start it without --resume."
            )
        repair = "Resume with the same recipe and overrides, or start in a new folder."
        check_recorded(folder / CONFIG_FILE, config, repair)
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"Expected a new or empty folder; {folder} has files. Choose another, or use --resume.")
    check_writable(folder)
