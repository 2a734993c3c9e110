"""A run folder: config.yaml, about.json, metrics.jsonl, rejected.txt, previews/, states/ and in the end model/."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from biflow.checkpoint import save_model
from biflow.config import RunConfig, WatchConfig
from biflow.config.base import first_difference, parse_config, to_yaml
from biflow.data.datasets import ImageSource, Source
from biflow.data.scan import write_rejected
from biflow.distributed import World, join_world
from biflow.errors import InputError, Interrupted
from biflow.files import check_writable, write_text
from biflow.models.codec import Codec, make_codec
from biflow.training.hooks import History, ProgressBoard
from biflow.training.loggers import Tracker, open_trackers
from biflow.training.loop import Hook, Trainer
from biflow.training.previews import Previews, Validation
from biflow.training.provenance import add_sitting, training_facts
from biflow.training.signals import stop_on_signal
from biflow.training.stages import Parts, Run, Trained, prepare, training_batches

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
    """A run in this folder, alone or with the other processes of a launcher.

    held_out: images that the loss is measured on now and then, if the config asks for it.  Within it Ctrl-C stops
    training between two steps, with its state saved.  An unconditional model sees the images without their classes.
    codec: the model's, if it is already loaded.
    """
    if not config.model.num_classes:
        data = data.without_classes()
    codec = codec or make_codec(config.model.codec)
    built: list[Parts] = []

    def begin() -> None:
        built.append(prepare(config, data, codec))
        check_batches(config, world)
        check_run_folder(folder, config, resume=resume)
        check_watch(config, held_out)
        (folder / STATES_FOLDER).mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, to_yaml(config))
        add_sitting(folder / ABOUT_FILE, world)
        if data.rejected:
            write_rejected(folder / REJECTED_FILE, data.rejected)
            message = f"Warning: skipped {len(data.rejected)} unreadable images, named in {folder / REJECTED_FILE}."
            console.print(message, markup=False, highlight=False, soft_wrap=True)

    with join_world() as world, stop_on_signal() as should_stop:
        world.on_main(begin)
        trackers = open_trackers(folder, config) if world.is_main else []
        with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:
            watcher = Watcher(folder, config.watch, board, trackers, codec)
            parts = built[0] if built else prepare(config, data, codec)
            run = Run(config, data, codec, world, folder / STATES_FOLDER, watcher.hooks, should_stop, parts)
            if held_out:
                watcher.held_out = replace(run, data=held_out if data.class_names else held_out.without_classes())
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
    """Write the trained model, and how it was trained, into its folder; for the main process."""
    facts = training_facts(run.config, trained.seconds, run.states.parent / HISTORY_FILE, run.world)
    save_model(trained.model, folder, facts)


@dataclass
class Watcher:
    """Makes the hooks of each stage: its log, its progress, and what else the config asks for."""

    folder: Path
    config: WatchConfig
    board: ProgressBoard
    trackers: Sequence[Tracker]
    codec: Codec
    held_out: Run | None = None  # the run with images that it does not train on

    def hooks(self, stage: str, trainer: Trainer) -> Sequence[Hook]:
        """The hooks of one stage; a resumed one goes on with its log."""
        history = History(self.folder / HISTORY_FILE, stage, trainer, self.trackers)
        hooks: list[Hook] = [history, self.board.stage(stage, trainer)]
        if self.config.preview_every:
            previews = self.folder / PREVIEWS_FOLDER
            grid = Previews(
                previews, stage, trainer, every=self.config.preview_every, trackers=self.trackers, codec=self.codec
            )
            hooks.append(grid)
        if self.config.validate_every and self.held_out:
            make_batch = training_batches(self.held_out, "validation", trainer.plain, trainer.config)
            batches = [partial(make_batch, step) for step in range(self.config.validate_batches)]
            hooks.append(Validation(trainer, batches, every=self.config.validate_every, record=history.record))
        return hooks


def check_batches(config: RunConfig, world: World) -> None:
    """Raise unless the processes can share every batch, and each can take its share in the parts asked for."""
    fits = [config.fit_flow] if config.stage != "reverse" else []
    for fit in [*fits, *([config.fit_reverse] if config.fit_reverse and config.stage != "flow" else [])]:
        own = len(world.share(torch.arange(fit.batch_size)))
        if own % fit.accumulate:
            raise InputError(
                f"Expected a batch of each process that splits into {fit.accumulate} parts; got {own}. "
                "Set accumulate to a number that divides it."
            )


def check_watch(config: RunConfig, held_out: ImageSource | None) -> None:
    """Raise unless there are images for what the config asks to be watched."""
    if config.watch.validate_every and not held_out:
        raise InputError(
            f"Expected images held out from {config.data!r} for watch.validate_every; there are none. "
            "Set reading.test_share, or watch.validate_every=0."
        )


def check_run_folder(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise unless a run with this config can start, or go on, in this folder."""
    if resume:
        try:
            text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"Expected a run to resume in {folder}; it has no {CONFIG_FILE}. Start it without --resume."
            ) from None
        recorded = parse_config(RunConfig, text, origin=str(folder / CONFIG_FILE))
        if recorded != config:
            difference = first_difference(recorded, config)
            assert difference
            key, old, new = difference
            raise InputError(
                f"Expected the settings that {folder / CONFIG_FILE} records; got {key}={new} instead of {old}. "
                "Resume with the same recipe and overrides, or start in another folder."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"Expected a new or empty folder; {folder} has files. Choose another, or continue with --resume."
        )
    check_writable(folder)
