"""A run folder: config.yaml, metrics.jsonl, states/ to resume from, and in the end model/."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from biflow.config import RunConfig
from biflow.config_base import first_difference, parse_config, to_yaml
from biflow.data.datasets import Source
from biflow.errors import InputError, Interrupted
from biflow.files import check_writable, write_text
from biflow.models.codec import make_codec
from biflow.training.distributed import join_world
from biflow.training.hooks import History, ProgressBoard
from biflow.training.interrupt import stop_on_signal
from biflow.training.loop import Hook, Trainer
from biflow.training.stages import Run, check_fits

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "metrics.jsonl"
STATES_FOLDER = "states"
MODEL_FOLDER = "model"


@contextmanager
def open_run(config: RunConfig, data: Source, folder: Path, *, resume: bool, console: Console) -> Iterator[Run]:
    """A run in this folder, alone or with the other processes of a launcher.

    Within it Ctrl-C stops training between two steps, with its state saved.  An unconditional model sees the images
    without their classes.
    """
    if not config.model.num_classes:
        data = data.without_classes()
    codec = make_codec(config.model.codec)

    def prepare() -> None:
        check_fits(config, data, codec)
        check_run_folder(folder, config, resume=resume)
        (folder / STATES_FOLDER).mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, to_yaml(config))

    with join_world() as world, stop_on_signal() as should_stop:
        world.on_main(prepare)
        with ProgressBoard(console if world.is_main else Console(quiet=True)) as board:

            def listen(stage: str, trainer: Trainer) -> Sequence[Hook]:
                fit, start = trainer.config, trainer.step
                history = History(folder / HISTORY_FILE, stage, world, every=fit.log_every, start_step=start)
                progress = board.stage(
                    stage, start_step=start, steps=fit.steps, batch_size=fit.batch_size, every=fit.log_every
                )
                return [history, progress]

            yield Run(config, data, codec, world, folder / STATES_FOLDER, listen, should_stop)
        if should_stop():
            raise Interrupted("all training is done and saved")


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
