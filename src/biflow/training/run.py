"""Run folders: settings, the data and sessions, metrics, previews, states of training and, when done, the model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from biflow.checkpoint import save_model
from biflow.config import RunConfig
from biflow.config.base import check_recorded, to_yaml
from biflow.data.datasets import ImageSource, Source
from biflow.data.scan import write_rejected
from biflow.distributed import World, join_world
from biflow.errors import InputError, Interrupted
from biflow.files import check_writable, has_files, hold_folder, remove_leftovers, write_text
from biflow.inputs import brief
from biflow.models.codec import Codec, make_codec
from biflow.training.batches import check_splits
from biflow.training.hooks import History, ProgressBoard
from biflow.training.loggers import Tracker, open_trackers
from biflow.training.loop import Hook, Trainer
from biflow.training.previews import every, previews, validation
from biflow.training.provenance import add_session, check_same_data, describe_data, training_facts
from biflow.training.signals import stop_on_signal
from biflow.training.stages import Run, RunNetworks, Trained, prepare, training_batches

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "metrics.jsonl"
DATA_FILE = "data.json"
ABOUT_FILE = "about.json"
PREVIEWS_FOLDER = "previews"
REJECTED_FILE = "rejected.txt"
STATES_FOLDER = "states"
MODEL_FOLDER = "model"
FREE_KEYS = ("process_timeout",)  # settings that may change when a run is resumed


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
        data, held_out = data.without_classes(), held_out and held_out.without_classes()
    codec = codec or make_codec(config.model.codec)

    with join_world(config.process_timeout) as world, ExitStack() as held, stop_on_signal() as should_stop:

        def begin() -> RunNetworks:
            if config.modules:
                message = f"Imports {', '.join(map(brief, config.modules))}, which run as code on this machine."
                console.print(message, markup=False, highlight=False, soft_wrap=True)
            check_run_folder(folder, config, resume=resume)
            networks = prepare(config, data, codec)
            check_batches(config, world)
            check_watch(config, held_out)
            held.enter_context(hold_folder(folder))
            begin_session(folder, config, data, world, console=console)
            return networks

        networks = world.on_main(begin) or prepare(config, data, codec)
        world.check_same(describe_data(data), f"the data {config.data!r}")
        trackers = open_trackers(folder, config) if world.is_main else []
        with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:

            def make_hooks(stage: str, trainer: Trainer) -> Sequence[Hook]:
                return hooks_of(run, stage, trainer, board=board, trackers=trackers, held_out=held_out)

            run = Run(config, data, codec, world, folder / STATES_FOLDER, make_hooks, should_stop, networks)
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


def begin_session(folder: Path, config: RunConfig, data: Source, world: World, *, console: Console) -> None:
    """Write what a session records: first the settings, by which a run is known to have begun."""
    for each in (folder, folder / PREVIEWS_FOLDER):
        remove_leftovers(each)
    write_text(folder / CONFIG_FILE, to_yaml(config))
    check_same_data(folder / DATA_FILE, {"train": data})
    add_session(folder / ABOUT_FILE, world)
    if data.rejected:
        write_rejected(folder / REJECTED_FILE, data.rejected)
        message = f"Warning: skipped {len(data.rejected)} unreadable images, listed in {folder / REJECTED_FILE}."
        console.print(message, markup=False, highlight=False, soft_wrap=True)


def keep_model(run: Run, trained: Trained, folder: Path) -> None:
    """Save the trained model and a record of its training; call in the main process only."""
    facts = training_facts(run.config, trained.seconds, run.states.parent / HISTORY_FILE, run.world)
    save_model(trained.model, folder, facts)


def hooks_of(
    run: Run, stage: str, trainer: Trainer, *, board: ProgressBoard, trackers: list[Tracker], held_out: Source | None
) -> Sequence[Hook]:
    """Hooks of one stage: metrics log, which a resumed stage continues, progress, and those set under `watch`."""
    folder, watch = run.states.parent, run.config.watch
    history = History(folder / HISTORY_FILE, stage, trainer, trackers)
    hooks: list[Hook] = [history, board.stage(stage, trainer)]
    if watch.preview_every:
        hook = previews(folder / PREVIEWS_FOLDER, stage, trainer, trackers=trackers, codec=run.codec)
        hooks.append(every(watch.preview_every, hook))
    if watch.validate_every and held_out:
        fit = trainer.config.model_copy(update={"steps": watch.validate_batches})
        make_batch = training_batches(replace(run, data=held_out), "validation", trainer.plain, fit)
        batches = [partial(make_batch, step) for step in range(watch.validate_batches)]
        hooks.append(every(watch.validate_every, validation(trainer, batches, history)))
    return hooks


def check_batches(config: RunConfig, world: World) -> None:
    """Raise unless batch sizes are divisible by the number of processes and by `accumulate`."""
    flow = config.fit_flow if config.stage != "reverse" else None
    reverse = config.fit_reverse if config.stage != "flow" else None
    for fit in filter(None, (flow, reverse, config.fit_finish)):
        check_splits(len(world.share(torch.arange(fit.batch_size))), fit.accumulate)


def check_watch(config: RunConfig, held_out: ImageSource | None) -> None:
    """Raise if `watch.validate_every` is set without held-out images."""
    if config.watch.validate_every and not held_out:
        raise InputError(
            f"Expected held-out images in {config.data!r}; got none. Set reading.test_share, or watch.validate_every=0."
        )


def check_run_folder(folder: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise unless a run with this config can start or resume in this folder."""
    if resume:
        if (folder / CONFIG_FILE).is_file():
            repair = "Resume with the same recipe and overrides, or start in a new folder."
            check_recorded(folder / CONFIG_FILE, config, repair, free=FREE_KEYS)
        elif has_files(folder) or not folder.is_dir():  # else it was killed before it began
            raise InputError(f"Expected a run in {folder}; it has no {CONFIG_FILE}. Start it without --resume.")
    elif has_files(folder):
        raise InputError(f"Expected a new or empty folder; {folder} has files. Choose another, or use --resume.")
    check_writable(folder)
